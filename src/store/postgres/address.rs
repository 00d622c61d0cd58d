//! Where a Postgres is: `postgres://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE?schema=NAME&sslmode=…`, as libpq has it, with the name of
//! the schema that holds the cluster. Nothing shows the password.

use std::{fmt, str::FromStr};

use sqlx::{ConnectOptions, postgres::PgConnectOptions};

use crate::store::engine::Error;

/// The schema of a cluster unless the address names one.
const SCHEMA: &str = "howdah";
/// Postgres cuts names at 63 bytes; the name is also that of the channel.
const SCHEMA_MAX: usize = 48;

#[derive(Clone)]
pub struct Address {
    /// One for each host, in order of preference: the first that takes writes is used.
    pub(super) hosts: Vec<PgConnectOptions>,
    pub(super) schema: String,
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let refused = |why: &str| Error::Unfit(format!("the address of Postgres: {why}; it has the form postgres://USER:PASSWORD@HOST:PORT/DATABASE?schema=NAME"));
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).ok_or_else(|| refused("an unknown scheme"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = path.split_once('/').unwrap_or((path, ""));
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let (mut schema, mut parameters) = (SCHEMA, Vec::new());
        for parameter in query.split('&').filter(|it| !it.is_empty()) {
            match parameter.split_once('=').unwrap_or((parameter, "")) {
                ("schema", name) if is_name(name) => schema = name,
                ("schema", _) => return Err(refused("a schema is named by small letters, digits and underscores")),
                ("target_session_attrs", "read-write" | "primary") => (),
                ("target_session_attrs", _) => return Err(refused("only a server that takes writes is of use: target_session_attrs=read-write")),
                _ => parameters.push(parameter),
            }
        }
        let options = |host: &str| {
            let at = if user.is_empty() { "" } else { "@" };
            let url = format!("postgres://{user}{at}{host}/{database}?{}", parameters.join("&"));
            let options = PgConnectOptions::from_str(&url).map_err(|why| refused(&why.to_string()))?;
            // A statement is no news, not even a slow one: the writer says what it waits for.
            Ok(options.application_name(&format!("howdah/{schema}")).disable_statement_logging())
        };
        Ok(Self { hosts: hosts.split(',').map(options).collect::<Result<_, Error>>()?, schema: schema.to_owned() })
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= SCHEMA_MAX
        && text.starts_with(|it: char| it.is_ascii_lowercase() || it == '_')
        && text.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_')
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(shown).collect();
        let database = self.hosts.first().and_then(|it| it.get_database()).unwrap_or_default();
        write!(f, "postgres at {}, database {database:?}, schema {:?}", hosts.join(" or "), self.schema)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) fn shown(host: &PgConnectOptions) -> String {
    match host.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => format!("{}:{}", host.get_host(), host.get_port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_hide_their_password() {
        let check = |url: &str, expected: &str| {
            let got = Address::from_str(url).map_or_else(|why| why.to_string(), |it| it.to_string());
            assert!(got.starts_with(expected), "{url}: {got}");
            assert!(!got.contains("s3cret"), "{got}");
        };
        check("postgres://u:s3cret@db/k", "postgres at db:5432, database \"k\", schema \"howdah\"");
        check("postgresql://u:s3cret%40x@a:1,b:2/k?schema=east&sslmode=require", "postgres at a:1 or b:2, database \"k\", schema \"east\"");
        check("postgres://u@%2Frun%2Fa,b/k?target_session_attrs=read-write", "postgres at /run/a or b:5432, database \"k\"");
        check("postgres://u@a/k?target_session_attrs=standby", "the address of Postgres: only a server that takes writes");
        check("postgres:///k?host=/run/pg&port=7", "postgres at /run/pg, database \"k\"");
        check("mysql://u:s3cret@h/k", "the address of Postgres: an unknown scheme");
        check("postgres://u:s3cret@h/k?schema=a\";drop", "the address of Postgres: a schema is named by");
        check("postgres://u:s3cret@h:port/k", "the address of Postgres: ");
        check("postgres://u:s3cret@h/k?sslmode=maybe", "the address of Postgres: ");
    }
}
