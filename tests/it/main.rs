//! Everything that needs a database, a socket or a process.

mod database;
mod http;
mod producers;
mod store;
