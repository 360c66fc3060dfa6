"""Sizes of images: the side of a square, or width and height."""

Size = int | tuple[int, int]  # px


def sides(size: Size) -> tuple[int, int]:
    """Width and height in px."""
    return (size, size) if isinstance(size, int) else size


def area(size: Size) -> int:
    """Pixels."""
    width, height = sides(size)
    return width * height


def as_text(size: Size) -> str:
    """Such as `512x448`."""
    return "x".join(map(str, sides(size)))
