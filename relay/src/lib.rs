//! The relay.
#![allow(missing_docs)]

pub mod admin;
pub mod bench;
pub mod cli;
pub mod config;
pub mod duration;
mod engine;
pub mod event;
pub mod frontier;
mod hands;
mod key_gate;
mod lane;
mod membership;
pub mod message;
mod outage;
mod outcome;
mod relay;
pub mod retry;
pub mod route;
pub mod server;
pub mod sink;
pub mod store;
pub mod telemetry;
pub mod verdict;

pub use crate::event::Event;
pub use crate::outcome::AfterDeadLetter;
pub use crate::relay::{Destination, Drained, Relay, RelayBuilder, RelayError, shutdown_signal};
pub use crate::sink::Ordering;
pub use crate::sink::handler::{Context, Handler, HandlerError, HandlerResult, Reply};
pub use crate::sink::http::Http;
