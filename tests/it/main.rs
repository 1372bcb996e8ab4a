//! Everything that needs a database, a socket or a process.

// Helpers of tests are tests, although the lint knows only functions marked as such.
#![allow(clippy::unwrap_used)]

mod checker;
mod database;
mod delivery;
mod http;
mod process;
mod producers;
mod sqlite;
mod store;
mod tables;
mod toy;
