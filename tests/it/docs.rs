//! The pages for people do what they say: every block of code is compiled, checked or run, every link leads somewhere,
//! and nothing is named that does not exist.
//!
//! What a block is tested by stands behind its language, as in `sql postgres`:
//!
//! | Block | What happens to it |
//! |---|---|
//! | `rust` | a documentation test of this package |
//! | `toml` | `relay check`, completed by what a fragment leaves out; a manifest is compared with our features |
//! | `sh` | run by bash, on an outbox with something in every table |
//! | `sh parsed` | read by bash, its `relay` commands by the relay; for what needs a machine of its own |
//! | `sql`, `sql postgres`, … | run on a database with the schema: each of them, or the one that is named |
//! | `sql postgres roles`, … | run and put to the proof by `roles` |
//! | `text` | a picture, nothing |
//!
//! `docs/CLI.md` and `docs/CONFIGURATION.md` are compared with the code by tests of their own; here their links and
//! words are looked at.

mod configurations;
mod links;
mod pages;
mod roles;
mod scripts;
mod statements;
mod words;

pub(crate) use scripts::relay_commands;
