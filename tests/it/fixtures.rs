//! Upstream's fixtures (`staging/src/k8s.io/api/testdata/HEAD`) go through the codecs and come back identical. They are not part
//! of this repository: `HOWDAH_FIXTURES` names their directories (as PATH does), or Debian's packages `golang-k8s-api-dev` and
//! `golang-k8s-apiextensions-apiserver-dev` have brought them.

use std::{env, fs, path::PathBuf};

use howdah::schema::{SchemaRef, builtin, codec, protobuf};
use serde_json::Value;

const DEBIAN: &str = "/usr/share/gocode/src/k8s.io/api/testdata/HEAD:/usr/share/gocode/src/k8s.io/apiextensions-apiserver/pkg/apis/testdata/HEAD";

/// All files of upstream's fixtures, in order; none where there are none.
pub fn files() -> Vec<PathBuf> {
    let directories = env::var("HOWDAH_FIXTURES").unwrap_or_else(|_| DEBIAN.to_owned());
    let entries = env::split_paths(&directories).filter_map(|it| fs::read_dir(it).ok()).flatten();
    let mut files: Vec<PathBuf> = entries.map(|it| it.expect("an entry").path()).collect();
    files.sort();
    if files.is_empty() {
        eprintln!("SKIPPED: no fixtures of upstream here; set HOWDAH_FIXTURES or install golang-k8s-api-dev");
    }
    files
}

/// The schema of what a fixture named `apps.v1.Deployment` holds; none for alpha and beta versions.
pub fn schema_of(stem: &str) -> Option<SchemaRef> {
    let (rest, kind) = stem.rsplit_once('.')?;
    let (group, version) = rest.rsplit_once('.')?;
    if version.contains("alpha") || version.contains("beta") {
        return None;
    }
    let package = group.split('.').next()?;
    let packages = [format!("api.{package}"), "apimachinery.pkg.apis.meta".to_owned(), format!("apiextensions-apiserver.pkg.apis.{package}")];
    packages.iter().find_map(|it| builtin(&format!("io.k8s.{it}.{version}.{kind}")))
}

/// What is wrong with one form of one fixture.
fn mismatch(form: &str, bytes: &[u8], expected: &Value, schema: &SchemaRef) -> Option<String> {
    let read = match form {
        "json" => codec::parse_json(bytes).and_then(|it| codec::decode(it, schema)).map(|it| it.0),
        "yaml" => codec::parse_yaml(bytes).and_then(|it| codec::decode(it, schema)).map(|it| it.0),
        _ => protobuf::decode(bytes, schema),
    };
    match read {
        Err(status) => Some(status.message),
        Ok(value) if value != *expected => Some(difference(&value, expected, "")),
        Ok(value) if form == "pb" => match protobuf::encode(&value, schema) {
            Ok(written) if written == bytes => None,
            Ok(written) => {
                let at = written.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                Some(format!("{} bytes written, {} expected, equal up to {at}", written.len(), bytes.len()))
            }
            Err(status) => Some(status.message),
        },
        Ok(_) => None,
    }
}

/// The first place where two values differ.
pub fn difference(found: &Value, expected: &Value, path: &str) -> String {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|it| !a.contains_key(*it)));
            for key in keys {
                let (a, b) = (a.get(key), b.get(key));
                if a != b {
                    return match (a, b) {
                        (Some(a), Some(b)) => difference(a, b, &format!("{path}.{key}")),
                        (a, b) => format!("{path}.{key}: {} instead of {}", a.unwrap_or(&"nothing".into()), b.unwrap_or(&"nothing".into())),
                    };
                }
            }
            String::new()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0);
            difference(&a[at], &b[at], &format!("{path}[{at}]"))
        }
        _ => format!("{path}: {found} instead of {expected}"),
    }
}

#[test]
fn upstreams_fixtures_round_trip_identically() {
    let files = files();
    if files.is_empty() {
        return;
    }
    let (mut counts, mut wrong) = ([(0, 0); 3], Vec::new());
    for json in files.iter().filter(|it| it.extension().is_some_and(|it| it == "json")) {
        let stem = json.file_stem().and_then(|it| it.to_str()).expect("a name");
        let Some(schema) = schema_of(stem) else { continue };
        let expected: Value = serde_json::from_slice(&fs::read(json).expect("a fixture")).expect("JSON");
        for (form, (equal, total)) in ["json", "yaml", "pb"].into_iter().zip(&mut counts) {
            let Ok(bytes) = fs::read(json.with_extension(form)) else { continue };
            *total += 1;
            match mismatch(form, &bytes, &expected, &schema) {
                None => *equal += 1,
                Some(why) => wrong.push(format!("{stem}.{form}: {why}")),
            }
        }
    }
    let [json, yaml, pb] = counts.map(|(equal, total)| format!("{equal}/{total}"));
    println!("identical: JSON {json}, YAML {yaml}, protobuf {pb}");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(counts[0].1 > 50, "fixtures of {} kinds only", counts[0].1);
}
