//! The promise, from the commit to the receiver: a whole relay inside the test, handlers and sockets at its other end.
//!
//! Producers, receivers and tables are looked at from outside; of the relay only what its users have is used. Nothing
//! sleeps and hopes: every wait is for something that can be seen, within a limit that is a failure.

mod backpressure;
mod cancel;
mod dead;
mod drains;
mod many;
mod order;
mod outage;
mod pauses;
mod promise;
mod retries;
mod routes;
mod shares;
pub(crate) mod stage;
mod stops;
mod throughput;
