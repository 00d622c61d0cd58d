//! What a request asks for, read from its method, path and query.
//! Source: apiserver `pkg/endpoints/request/requestinfo.go`.

use http::Method;

use super::identity::Attributes;
use crate::meta::options::{Query, percent_decode};

/// A request of the resource API, or another path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    /// As RBAC knows it: `get`, `list`, `watch`, `create` …
    pub verb: String,
    pub path: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource: the path of a proxied request.
    pub rest: String,
    /// The path went through the deprecated `/watch/`.
    pub is_watch_path: bool,
}

impl RequestInfo {
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self { path: path.to_owned(), verb: method.as_str().to_ascii_lowercase(), ..Self::default() };
        let parts: Vec<String> = path.split('/').filter(|it| !it.is_empty()).map(percent_decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        info.resolve(method, rest, parts.len(), query);
        info
    }

    /// `parts` are the last of `all` segments of the path.
    fn resolve(&mut self, method: &Method, parts: &[&str], all: usize, query: &Query) {
        let mut parts = parts;
        if let ["watch", rest @ ..] = parts
            && !rest.is_empty()
        {
            self.is_watch_path = true;
            parts = rest;
        }
        // `namespaces/x/status` and `namespaces/x/finalize` are about the namespace itself.
        if let ["namespaces", namespace, rest @ ..] = parts {
            self.namespace = (*namespace).to_owned();
            if !rest.is_empty() && !matches!(rest, ["status" | "finalize"]) {
                parts = rest;
            }
        }
        // Resource, name and subresource come after these.
        let before = all - parts.len();
        if let [resource, rest @ ..] = parts {
            self.resource = (*resource).to_owned();
            self.name = rest.first().map_or_else(String::new, |it| (*it).to_owned());
            self.subresource = rest.get(1).map_or_else(String::new, |it| (*it).to_owned());
        }
        if self.subresource == "proxy" {
            self.rest = after(&self.path, before + 3);
        }
        self.verb = self.resource_verb(method, query).to_owned();
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection") && self.name.is_empty() {
            let selector = crate::meta::FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).unwrap_or_default();
            if let Some(name) = selector.exact("metadata.name") {
                self.name = name.to_owned();
            }
        }
    }

    fn resource_verb(&self, method: &Method, query: &Query) -> &'static str {
        let is_watch = self.is_watch_path || query.flag("watch").unwrap_or(false);
        match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if self.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            _ if !self.name.is_empty() && !self.is_watch_path && self.subresource.is_empty() => "get",
            _ if !self.subresource.is_empty() => "get",
            _ if is_watch => "watch",
            _ => "list",
        }
    }

    /// The question to the authorizer.
    pub fn attributes(&self) -> Attributes {
        if !self.is_resource {
            return Attributes { verb: self.verb.clone(), path: self.path.clone(), ..Attributes::default() };
        }
        Attributes {
            verb: self.verb.clone(),
            path: String::new(),
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// The raw text of a path after so many of its segments, as the client wrote it.
fn after(path: &str, segments: usize) -> String {
    let mut rest = path;
    for _ in 0..segments {
        let inner = rest.trim_start_matches('/');
        rest = inner.find('/').map_or("", |at| &inner[at..]);
    }
    rest.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> String {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let info = RequestInfo::parse(&Method::from_bytes(method.as_bytes()).expect("a method"), path, &Query::parse(query));
        match info.is_resource {
            false => format!("{} {}", info.verb, info.path),
            true => [&info.verb, &info.group, &info.version, &info.namespace, &info.resource, &info.name, &info.subresource, &info.rest].map(String::as_str).join("|"),
        }
    }

    #[test]
    fn paths_and_methods_say_what_is_asked() {
        let cases = [
            ("GET", "/api/v1/namespaces", "list||v1||namespaces|||"),
            ("GET", "/api/v1/namespaces/x", "get||v1|x|namespaces|x||"),
            ("PUT", "/api/v1/namespaces/x/finalize", "update||v1|x|namespaces|x|finalize|"),
            ("GET", "/api/v1/namespaces/x/pods", "list||v1|x|pods|||"),
            ("GET", "/api/v1/namespaces/x/pods?watch=1", "watch||v1|x|pods|||"),
            ("GET", "/api/v1/watch/pods", "watch||v1||pods|||"),
            ("GET", "/api/v1/pods?watch=true&fieldSelector=metadata.name%3Da", "watch||v1||pods|a||"),
            ("GET", "/api/v1/namespaces/x/pods/a/log", "get||v1|x|pods|a|log|"),
            ("POST", "/api/v1/namespaces/x/pods/a/exec", "create||v1|x|pods|a|exec|"),
            ("GET", "/api/v1/namespaces/x/services/http:a:80/proxy/b/c%2Fd", "get||v1|x|services|http:a:80|proxy|/b/c%2Fd"),
            ("GET", "/api/v1/namespaces/x/services/proxy-me/proxy/", "get||v1|x|services|proxy-me|proxy|/"),
            ("GET", "/api/v1/nodes/n/proxy", "get||v1||nodes|n|proxy|"),
            ("DELETE", "/apis/apps/v1/namespaces/x/deployments", "deletecollection|apps|v1|x|deployments|||"),
            ("PATCH", "/apis/apps/v1/namespaces/x/deployments/a", "patch|apps|v1|x|deployments|a||"),
            ("GET", "/healthz", "get /healthz"),
            ("GET", "/apis/apps/v1", "get /apis/apps/v1"),
        ];
        for (method, uri, expected) in cases {
            assert_eq!(parse(method, uri), expected, "{method} {uri}");
        }
    }
}
