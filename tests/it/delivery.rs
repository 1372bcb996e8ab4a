//! The promise, from the commit to the receiver: a whole relay inside the test, handlers and sockets at its other end.
//!
//! Producers, receivers and tables are looked at from outside; of the relay only what its users have is used. Nothing
//! sleeps and hopes: every wait is for something that can be seen, within a limit that is a failure.

#[macro_use]
pub(crate) mod stage;

mod aside;
mod backpressure;
mod cancel;
mod circuits;
mod costs;
mod dead;
mod deaths;
mod deploys;
mod drains;
mod expiry;
mod keys;
mod late;
mod lost;
mod many;
mod modes;
mod neighbours;
mod order;
mod outage;
mod pauses;
mod promise;
mod put_back;
mod recovery;
mod retries;
mod routes;
mod shares;
mod stops;
mod throughput;
mod unordered;
