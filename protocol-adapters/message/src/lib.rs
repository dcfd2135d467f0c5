//! The forms in which messages are stored, and conversions between them
