"""Programs that measure the suite or prepare files for it; not part of the wheel."""
