//! Everybody who may put a message into the outbox, and what each of them can rely on.
//!
//! The tests look at the tables from outside, through connections of their own; no relay runs here.

mod clients;
mod function;
mod lost_transaction;
mod migrations;
mod options;
mod roles;
pub(crate) mod stored;
mod transactions;
