"""What people look at. So far: strips of one pair's images."""
