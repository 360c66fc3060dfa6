"""Model families: files on disk, parts in memory, and prompts as the denoiser reads them."""
