//! What the library does beyond a plain enqueue, looked at from outside, on every database; no relay runs here.

mod cancel;
mod compile;
mod dedup;
mod generic;
mod inbox;
mod testing;
mod trace;
mod transaction;
