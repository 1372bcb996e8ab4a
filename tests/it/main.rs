//! Everything that needs a database, a socket or a process.

mod database;
mod producers;
