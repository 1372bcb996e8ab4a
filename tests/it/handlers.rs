//! Handlers in a whole relay: several types of messages, and effects that happen exactly once.

mod busy;
mod exactly_once;
mod frozen;
mod kill;
mod lost_answers;
mod stage;
mod strays;
mod types;
