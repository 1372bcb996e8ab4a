//! In-process handlers.
