//! What OpenAPI documents tell beside the kinds: discovery itself, the version, the keys of tokens.
//! Source: apiserver `pkg/endpoints/{groupversion,discovery}`, `pkg/server/routes`.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    paths::{META, answer, group_version, root},
    tokens,
};
use crate::{
    kinds::Registry,
    meta::{Map, Value},
    schema::{
        self,
        openapi::{Dialect, define},
    },
};

const VERSION: &str = "io.k8s.apimachinery.pkg.version.Info";
const DISCOVERED: &[&str] = &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];

/// A path with its one operation.
pub struct Route {
    /// The document that has it.
    pub place: String,
    id: String,
    tag: String,
    description: &'static str,
    media_types: &'static [&'static str],
    /// The name of the definition of the answer; empty for a text.
    answer: String,
}

/// All of them; what lies below a group of custom resources is not told, as upstream.
pub fn all(registry: &Registry) -> Vec<Route> {
    let discovery = |place: &str, id: String, tag: &str, description, kind: &str| Route {
        place: place.to_owned(),
        id,
        tag: tag.to_owned(),
        description,
        media_types: DISCOVERED,
        answer: format!("{META}.{kind}"),
    };
    let document = |place: &str, id: &str, tag: &str, description, media_types, answer: &str| {
        let named = discovery(place, id.to_owned(), tag, description, "");
        Route { media_types, answer: answer.to_owned(), ..named }
    };
    const AVAILABLE: &str = "get available API versions";
    let (configuration, keys) = (tokens::OPENID_CONFIGURATION_PATH.trim_start_matches('/'), tokens::JWKS_PATH.trim_start_matches('/'));
    let mut routes = vec![
        discovery("api", "getCoreAPIVersions".to_owned(), "core", AVAILABLE, "APIVersions"),
        discovery("apis", "getAPIVersions".to_owned(), "apis", AVAILABLE, "APIGroupList"),
        document("version", "getCodeVersion", "version", "get the version information for this server", &["application/json"], VERSION),
        document(configuration, "getServiceAccountIssuerOpenIDConfiguration", "WellKnown", "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'", &["application/json"], ""),
        document(keys, "getServiceAccountIssuerOpenIDKeyset", "openid", "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)", &["application/jwk-set+json"], ""),
    ];
    let kinds = registry.iter().filter(|it| it.custom.is_none());
    let versions: BTreeSet<(&str, &str)> = kinds.flat_map(|kind| kind.versions.iter().filter(|it| it.is_served).map(|it| (kind.group.as_ref(), it.name.as_ref()))).collect();
    for (group, version) in &versions {
        let (id, tag) = group_version(group, version);
        routes.push(discovery(&root(group, version), format!("get{id}APIResources"), &tag, "get available resources", "APIResourceList"));
    }
    for group in versions.iter().map(|it| it.0).filter(|it| !it.is_empty()).collect::<BTreeSet<_>>() {
        let (id, tag) = group_version(group, "");
        routes.push(discovery(&format!("apis/{group}"), format!("get{id}APIGroup"), tag.trim_end_matches('_'), "get information of a group", "APIGroup"));
    }
    routes
}

impl Route {
    pub fn add(&self, dialect: Dialect, paths: &mut Map<String, Value>, definitions: &mut Map<String, Value>) {
        let schema = match self.answer.as_str() {
            "" => json!({"type": "string"}),
            name => dialect.refer(name),
        };
        match schema::builtin(&self.answer) {
            Some(builtin) => define(&builtin, &self.answer, dialect, definitions),
            None if self.answer == VERSION => _ = definitions.insert(VERSION.to_owned(), version()),
            None => (),
        }
        let mut operation = json!({"description": self.description, "operationId": self.id, "tags": [self.tag]});
        if dialect == Dialect::V2 {
            operation["produces"] = json!(self.media_types);
            operation["schemes"] = json!(["https"]);
        }
        let answered = answer(dialect, "OK", self.media_types, &schema);
        operation["responses"] = json!({"200": answered, "401": {"description": "Unauthorized"}});
        paths.insert(format!("/{}/", self.place), json!({"get": operation}));
    }
}

/// The definition of `/version`, which is no API type.
fn version() -> Value {
    const FIELDS: [&str; 9] = ["major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"];
    let properties: Map<String, Value> = FIELDS.iter().map(|it| ((*it).to_owned(), json!({"type": "string", "default": ""}))).collect();
    json!({"description": "Info contains versioning information.", "type": "object", "required": FIELDS, "properties": properties})
}
