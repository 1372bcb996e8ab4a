//! `relay migrate`: the schema, applied, shown or printed.

use std::path::Path;

use outbox::migrations::{self, State};
use serde_json::json;

use super::args::{BackendName, Global, Migrate};
use super::output::say;
use super::{Exit, Failure, settings};
use crate::admin::{self, Connection, Missing, with_connection};
use crate::config::{Config, Scope, database_url};

/// Runs one of the `migrate` commands.
pub(super) fn run(global: &Global, command: &Migrate) -> Result<Exit, Failure> {
    match command {
        Migrate::Up => up(global),
        Migrate::Status => status(global),
        Migrate::Print { backend } => print(global, *backend),
    }
}

fn up(global: &Global) -> Result<Exit, Failure> {
    let config = settings::load(global, Scope::Database)?;
    let target = database_url::target(config.database.url.expose());
    if global.dry_run {
        let pending = match new_file(config.database.url.expose()) {
            Some(path) => {
                say(&format!("would create the file {path}"));
                // Of a file that is not there everything is missing.
                pending(&mut admin::connect("sqlite::memory:", Missing::Create)?)?
            }
            None => pending(&mut connect(&config, Missing::Refuse)?)?,
        };
        global.output().many(&["WOULD APPLY"], &pending, |name| vec![name.clone()])?;
        return Ok(Exit::Ok);
    }
    let mut conn = connect(&config, Missing::Create)?;
    let applied = with_connection!(&mut conn, conn => migrations::run(conn))?;
    if applied.is_empty() {
        say(&format!("{target}: nothing to do, the schema is up to date"));
    }
    global.output().many(&["APPLIED"], &applied, |name| vec![name.clone()])?;
    Ok(Exit::Ok)
}

fn status(global: &Global) -> Result<Exit, Failure> {
    let config = settings::load(global, Scope::Database)?;
    let mut conn = connect(&config, Missing::Refuse)?;
    let all = with_connection!(&mut conn, conn => migrations::status(conn))?;
    let word = |state| match state {
        State::Applied => "applied",
        State::Pending => "pending",
        State::Unknown => "unknown to this build",
    };
    let rows: Vec<_> = all.iter().map(|each| json!({ "name": each.name, "state": word(each.state) })).collect();
    global.output().many(&["MIGRATION", "STATE"], &rows, |row| {
        ["name", "state"].map(|column| row[column].as_str().unwrap_or_default().to_owned()).to_vec()
    })?;
    let is_pending = all.iter().any(|each| each.state == State::Pending);
    if is_pending {
        say("help: run `relay migrate up`");
    }
    Ok(if is_pending { Exit::Found } else { Exit::Ok })
}

fn print(global: &Global, backend: Option<BackendName>) -> Result<Exit, Failure> {
    let database = match backend {
        Some(BackendName::Postgres) => outbox::Database::Postgres,
        Some(BackendName::Mysql) => outbox::Database::Mysql,
        Some(BackendName::Sqlite) => outbox::Database::Sqlite,
        None => {
            let config = settings::load(global, Scope::Database)?;
            database_url::database(config.database.url.expose()).expect("a loaded configuration names a known database")
        }
    };
    // SQL in every format: whoever pipes it elsewhere wants nothing around it.
    global.output().lines(&migrations::sql(database))?;
    Ok(Exit::Ok)
}

/// The SQLite file that would be made: it is not there, and its folder is.
fn new_file(url: &str) -> Option<&str> {
    let path = database_url::sqlite_path(url)?;
    let file = Path::new(path);
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (!file.exists() && folder.is_dir()).then_some(path)
}

fn pending(conn: &mut Connection) -> Result<Vec<String>, Failure> {
    let all = with_connection!(conn, conn => migrations::status(conn))?;
    Ok(all.into_iter().filter(|each| each.state == State::Pending).map(|each| each.name).collect())
}

fn connect(config: &Config, missing: Missing) -> Result<Connection, Failure> {
    Ok(admin::connect(config.database.url.expose(), missing)?)
}
