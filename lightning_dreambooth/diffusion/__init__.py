"""The objective and the sampling loop, as functions of tensors."""
