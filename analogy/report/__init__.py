"""Output for people: the HTML report, its plots and tables, text tables, strips of images."""
