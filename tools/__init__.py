"""Programs that measure the suite or prepare something for it; not part of the wheel."""
