//! What the relay answers over HTTP.

pub mod health;
pub mod notify;
