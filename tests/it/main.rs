//! Everything that needs a database, a socket or a process.

// Helpers of tests are tests, although the lint knows only functions marked as such.
// Figures are printed, for whoever runs a test to see them.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod backlog;
mod checker;
mod cli;
mod cli_config;
mod cli_database;
mod cli_destinations;
mod cli_docs;
mod cli_explain;
mod cli_keys;
mod cli_messages;
mod cli_rules;
mod cli_secret;
mod cli_trying;
mod database;
mod dead_letters;
mod delivery;
mod destinations;
mod docs;
mod examples;
mod faults;
mod handlers;
mod hostile;
mod http;
mod independent;
mod isolation;
mod keys;
mod kill;
mod library;
mod poison;
mod process;
mod producers;
mod readme;
mod relays;
mod reload;
mod servers;
mod sqlite;
mod ssrf;
mod store;
mod storm;
mod suspects;
mod tables;
mod testing_kit;
mod tls;
mod toy;
mod unrouted;
