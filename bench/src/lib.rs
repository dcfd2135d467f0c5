//! Load drivers and side-by-side comparisons
