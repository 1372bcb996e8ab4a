//! What can be said about a database url without connecting.
//!
//! Only the shape: which database it names, whether a password is in it, and how to show it to people. The drivers
//! parse the rest, and they know better.

use outbox::Database;

/// Which database the url names, or `None` when it names none we know.
pub fn database(url: &str) -> Option<Database> {
    let (scheme, _) = url.split_once(':')?;
    match scheme {
        "postgres" | "postgresql" => Some(Database::Postgres),
        "mysql" | "mariadb" => Some(Database::Mysql),
        "sqlite" => Some(Database::Sqlite),
        _ => None,
    }
}

/// The file a `sqlite:` url names.
pub fn sqlite_path(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    (!path.is_empty()).then_some(path)
}

/// True when a password stands in the url, before the host or among the parameters.
pub fn has_password(url: &str) -> bool {
    if database(url) == Some(Database::Sqlite) {
        return false;
    }
    let in_front =
        userinfo(url).and_then(|info| info.split_once(':')).is_some_and(|(_, password)| !password.is_empty());
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    in_front || parameters.split('&').any(|parameter| parameter.starts_with("password="))
}

/// True when somebody is named in the url, before the host.
pub(crate) fn has_user(url: &str) -> bool {
    database(url) != Some(Database::Sqlite) && userinfo(url).is_some()
}

/// The url as people may see it: no user, no password, no parameters.
pub fn target(url: &str) -> String {
    if database(url) == Some(Database::Sqlite) {
        return url.to_owned();
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return "(not a url)".to_owned();
    };
    let rest = userinfo(url).map_or(rest, |info| &rest[info.len() + 1..]);
    let rest = rest.split_once(['?', '#']).map_or(rest, |(rest, _)| rest);
    format!("{scheme}://{rest}")
}

/// What stands between `://` and the last `@` before the path. The last one, because people forget to escape an `@`
/// in a password, and half a password must not be shown either.
fn userinfo(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    authority.rfind('@').map(|at| &rest[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_password_is_shown() {
        for (url, shown, password) in [
            ("postgres://shop:s3cret@db.internal:5432/shop", "postgres://db.internal:5432/shop", true),
            ("postgres://shop:s3c@ret/x@db.internal/shop", "postgres://db.internal/shop", true),
            ("postgres://shop@db.internal/shop", "postgres://db.internal/shop", false),
            ("postgres://db.internal/shop?user=a&password=b", "postgres://db.internal/shop", true),
            ("mysql://root:@127.0.0.1/shop", "mysql://127.0.0.1/shop", false),
            ("sqlite:shop.db", "sqlite:shop.db", false),
            ("s3cret", "(not a url)", false),
        ] {
            assert_eq!(target(url), shown);
            assert_eq!(has_password(url), password, "{url}");
        }
    }

    #[test]
    fn schemes_name_the_database() {
        for (url, expected) in [
            ("postgres://x", Some(Database::Postgres)),
            ("postgresql://x", Some(Database::Postgres)),
            ("mysql://x", Some(Database::Mysql)),
            ("sqlite:a.db", Some(Database::Sqlite)),
            ("redis://x", None),
            ("shop.db", None),
        ] {
            assert_eq!(database(url), expected, "{url}");
        }
        assert_eq!(sqlite_path("sqlite:a.db"), Some("a.db"));
        assert_eq!(sqlite_path("sqlite:///tmp/a.db"), Some("/tmp/a.db"));
        assert_eq!(sqlite_path("sqlite:/tmp/a.db"), Some("/tmp/a.db"));
        assert_eq!(sqlite_path("sqlite:"), None);
    }
}
