//! Everything that needs a database, a socket or a process.

mod database;
mod dead_letters;
mod http;
mod producers;
mod store;
