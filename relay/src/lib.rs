//! The relay.
#![allow(missing_docs)]

pub mod admin;
pub mod cli;
pub mod config;
pub mod duration;
pub mod frontier;
pub mod message;
pub mod retry;
pub mod route;
pub mod sink;
pub mod store;
pub mod verdict;
