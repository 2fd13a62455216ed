"""One example of each seam, a file each."""
