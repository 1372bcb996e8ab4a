//! Everything that needs a database, a socket or a process.

mod checker;
mod database;
mod process;
mod tables;
mod toy;
