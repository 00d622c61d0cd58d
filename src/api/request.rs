//! What a request asks for, read from its method, path and query.
//! Source: apiserver `pkg/endpoints/request/requestinfo.go`.

use http::Method;

use super::identity::Attributes;
use crate::meta::{
    FieldSelector,
    options::{Query, percent_decode},
};

impl Attributes {
    /// What a request asks for; one that is not of the resource API asks for its path.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let parts: Vec<String> = path.split('/').filter(|it| !it.is_empty()).map(percent_decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, parts) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Self { verb: method.as_str().to_ascii_lowercase(), path: path.to_owned(), ..Self::default() },
        };
        // The deprecated way to watch.
        let (is_watch_path, parts) = match parts {
            ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
            _ => (false, parts),
        };
        let (namespace, parts) = match parts {
            // These are about the namespace itself.
            ["namespaces", namespace] | ["namespaces", namespace, "status" | "finalize"] => (*namespace, parts),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            _ => ("", parts),
        };
        let part = |at: usize| parts.get(at).copied().unwrap_or_default().to_owned();
        let (verb, path) = Default::default();
        let mut asked = Self { verb, path, group: group.to_owned(), version: version.to_owned(), resource: part(0), name: part(1), subresource: part(2), namespace: namespace.to_owned(), ..Self::default() };
        asked.verb = asked.verb_of(method, is_watch_path, query).to_owned();
        if matches!(asked.verb.as_str(), "list" | "watch" | "deletecollection") && asked.name.is_empty() {
            let selector = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).unwrap_or_default();
            asked.name = selector.exact("metadata.name").unwrap_or_default().to_owned();
        }
        asked
    }

    fn verb_of(&self, method: &Method, is_watch_path: bool, query: &Query) -> &'static str {
        match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if self.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            _ if !self.subresource.is_empty() || !self.name.is_empty() && !is_watch_path => "get",
            _ if is_watch_path || query.flag("watch").unwrap_or(false) => "watch",
            _ => "list",
        }
    }

    /// What follows `/proxy` in the path of the request, as the client wrote it; "" for other requests.
    pub fn proxied<'p>(&self, path: &'p str) -> &'p str {
        let before = 5 + usize::from(!self.group.is_empty()) + if self.namespace.is_empty() { 0 } else { 2 };
        match self.subresource.as_str() {
            "proxy" => (0..before).fold(path, |rest, _| {
                let inner = rest.trim_start_matches('/');
                inner.find('/').map_or("", |at| &inner[at..])
            }),
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> String {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let asked = Attributes::parse(&Method::from_bytes(method.as_bytes()).expect("a method"), path, &Query::parse(query));
        match asked.is_resource() {
            false => format!("{} {}", asked.verb, asked.path),
            true => [&asked.verb, &asked.group, &asked.version, &asked.namespace, &asked.resource, &asked.name, &asked.subresource, asked.proxied(path)].join("|"),
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
