//! Lists: selection, paging over a stable snapshot, and the meanings of resourceVersion.
//! Source: apiserver `pkg/storage/continue.go`, `pkg/apis/meta/internalversion/validation`, the "Resource versions" page of the documentation.

use std::sync::Arc;

use base64::{DecodeError, Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::json;

use super::{Server, negotiation::Form, target::Target};
use crate::{
    meta::{
        FieldError, FieldErrors, FieldSelector, LabelSelector, Meta, Path, Result, Status,
        options::{ListOptions, invalid},
        selector::FieldTerm,
    },
    schema::codec,
    store::{ReadError, Revision, Scope, Snapshot, Stored},
};

/// Objects that are looked at together.
const CHUNK: usize = 1000;

/// What a client wants of a resource: label and field selector.
#[derive(Clone)]
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// 400 for fields that the kind does not offer.
    pub fn new(target: &Target, options: &ListOptions) -> Result<Self> {
        let mut fields = options.fields.clone();
        if !target.name.is_empty() && fields.exact("metadata.name").is_none() {
            fields = FieldSelector::parse(&format!("metadata.name={}", target.name)).map_err(Status::bad_request)?;
        }
        let selectable = &target.version().selectable;
        for FieldTerm { field, .. } in fields.terms() {
            let is_of_all = field == "metadata.name" || (field == "metadata.namespace" && target.kind.is_namespaced());
            if !is_of_all && selectable.iter().all(|it| it.name != *field) {
                return Err(Status::bad_request(match selectable.is_empty() && target.kind.custom.is_none() {
                    true => format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
                    false => format!("field label not supported: {field}"),
                }));
            }
        }
        // Headers hold the fields of the stored kind; where a kind shares another's store, its fields go by other names.
        if target.kind.storage.is_some() {
            fields = fields.renamed(|it| it.replace("regarding.", "involvedObject.").replace("reportingController", "reportingComponent"));
        }
        Ok(Self { labels: options.labels.clone(), fields })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub fn matches(&self, object: &Stored) -> bool {
        let header = &object.header;
        self.labels.matches_with(|key| header.label(key))
            && self.fields.matches_with(|field| match field {
                "metadata.name" => object.key.name.as_ref().into(),
                "metadata.namespace" => object.key.namespace.as_ref().into(),
                other => header.field(other).unwrap_or_default().into(),
            })
    }

    /// The narrowest scope that holds all that is selected.
    pub fn scope(&self, target: &Target) -> Scope {
        let namespace = target.in_namespace().or_else(|| self.fields.exact("metadata.namespace"));
        // The fields of custom resources are those of the version that is asked for; the log has the stored ones.
        let terms = if target.view().selects_served() { &[] } else { self.fields.terms() };
        let field = terms.iter().find(|it| it.is_equal && !it.field.starts_with("metadata.") && !it.value.is_empty());
        Scope {
            resource: target.kind.resource().into(),
            namespace: namespace.map(Into::into),
            name: self.fields.exact("metadata.name").map(Into::into),
            field: field.map(|it| (it.field.as_str().into(), it.value.as_str().into())),
        }
    }
}

/// Answers a list.
pub async fn list(server: &Server, target: &Target, options: &ListOptions, form: Form) -> Result<Bytes> {
    check(options, false)?;
    let selection = Selection::new(target, options)?;
    let resource = target.kind.resource();
    let page = Page::start(server, &resource, options).await?;
    let limit = options.limit.and_then(|it| usize::try_from(it).ok()).unwrap_or(usize::MAX);
    let mut all = page.objects(&resource, target.in_namespace());
    let mut chosen = Vec::new();
    // A page more than asked for would be converted only to be thrown away.
    while chosen.len() < limit {
        let next: Vec<&Arc<Stored>> = all.by_ref().take((limit - chosen.len()).min(CHUNK)).collect();
        if next.is_empty() {
            break;
        }
        chosen.extend(select(server, target, &selection, next.into_iter()).await?);
    }
    let remaining = match selection.is_everything() {
        _ if chosen.len() < limit => 0,
        true => all.count(),
        // How many of the rest are selected is not counted.
        false => usize::from(all.next().is_some()),
    };
    let chosen: Vec<&Stored> = chosen.iter().map(|it| it.as_ref()).collect();
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let (1.., Some(last)) = (remaining, chosen.last()) {
        metadata["continue"] = Token { revision: Some(page.revision), namespace: last.key.namespace.to_string(), name: last.key.name.to_string() }.encode().into();
        if selection.is_everything() {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    target.view().list(&chosen, form, metadata)
}

/// The objects that are selected, as the target's version serves them.
pub async fn select<'a>(
    server: &Server,
    target: &Target,
    selection: &Selection,
    objects: impl Iterator<Item = &'a Arc<Stored>>,
) -> Result<Vec<Arc<Stored>>> {
    let view = target.view();
    if view.selects_served() {
        let served = server.served(view, objects.cloned().collect()).await?;
        return Ok(served.into_iter().filter(|it| selection.matches(it)).collect());
    }
    server.served(view, objects.filter(|it| selection.matches(it)).cloned().collect()).await
}

/// `ValidateListOptions`, after `SetListOptionsDefaults`.
pub fn check(options: &ListOptions, is_watch: bool) -> Result<()> {
    let mut errors = FieldErrors::new();
    let (wanted, version, path) = (options.resource_version_match.as_str(), options.resource_version.as_str(), Path::new("resourceVersionMatch"));
    let mut forbid = |is_wrong: bool, why: &'static str| errors.extend(is_wrong.then(|| FieldError::forbidden(&path, why)));
    // A watch from nowhere begins with what is there, as if it had asked for that.
    let begins_by_itself = is_watch && wanted.is_empty() && options.send_initial_events.is_none() && matches!(version, "" | "0");
    if is_watch {
        let asks = options.send_initial_events.is_some();
        forbid(asks && wanted != "NotOlderThan", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        forbid(!asks && !wanted.is_empty(), "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
    } else {
        forbid(!wanted.is_empty() && version.is_empty(), "resourceVersionMatch is forbidden unless resourceVersion is provided");
        forbid((wanted, version) == ("Exact", "0"), "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    }
    forbid(!options.continues.is_empty() && (begins_by_itself || !wanted.is_empty()), "resourceVersionMatch is forbidden when continue is provided");
    let supported: &[&str] = if is_watch { &["NotOlderThan"] } else { &["Exact", "NotOlderThan", ""] };
    if !wanted.is_empty() && !supported.contains(&wanted) {
        errors.push(FieldError::not_supported(&path, wanted, supported));
    }
    if !is_watch && options.send_initial_events.is_some() {
        errors.push(FieldError::forbidden(&Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list"));
    }
    if errors.is_empty() { Ok(()) } else { Err(invalid("ListOptions", errors)) }
}

/// The objects to choose from, at one revision.
struct Page {
    revision: Revision,
    source: Source,
    after: Option<(String, String)>,
}

enum Source {
    Now(Snapshot),
    Exact(Arc<[Arc<Stored>]>),
}

impl Page {
    async fn start(server: &Server, resource: &str, options: &ListOptions) -> Result<Self> {
        if !options.continues.is_empty() {
            if !matches!(options.resource_version.as_str(), "" | "0") {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            return Self::next(server, resource, Token::decode(&options.continues)?).await;
        }
        let revision = parse_revision(&options.resource_version).map_err(|why| Status::bad_request(format!("invalid resource version: {}", why.message)))?;
        let is_exact = options.resource_version_match == "Exact" || (options.limit.is_some() && revision > 0 && options.resource_version_match.is_empty());
        if is_exact && revision > 0 {
            let objects = server.store.exact(resource, revision).map_err(|error| too_new(error, revision))?;
            return Ok(Self { revision, source: Source::Exact(objects), after: None });
        }
        Ok(Self::now(current(server, options).await?, None))
    }

    fn now(snapshot: Snapshot, after: Option<(String, String)>) -> Self {
        Self { revision: snapshot.revision(), source: Source::Now(snapshot), after }
    }

    /// The page after a token: of the same revision, or of what is there now for one that has given up consistency.
    async fn next(server: &Server, resource: &str, token: Token) -> Result<Self> {
        let after = Some((token.namespace.clone(), token.name.clone()));
        let Some(revision) = token.revision else {
            return Ok(Self::now(server.consistent().await?, after));
        };
        let objects = server.store.exact(resource, revision).map_err(|error| match error {
            ReadError::Compacted(_) => Status::expired_but_continues(Token { revision: None, ..token }.encode()),
            ReadError::Future(_) => too_new(error, revision),
        })?;
        Ok(Self { revision, source: Source::Exact(objects), after })
    }

    fn objects<'a>(&'a self, resource: &str, namespace: Option<&'a str>) -> Box<dyn Iterator<Item = &'a Arc<Stored>> + Send + 'a> {
        let after = self.after.as_ref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        match &self.source {
            Source::Now(snapshot) => snapshot.list(resource, namespace, after),
            Source::Exact(objects) => {
                let from = after.map_or(0, |after| objects.partition_point(|it| (&*it.key.namespace, &*it.key.name) <= after));
                Box::new(objects[from..].iter().filter(move |it| namespace.is_none_or(|namespace| *it.key.namespace == *namespace)))
            }
        }
    }
}

/// What is there now: all that was acknowledged, or what this server has seen once it has seen a given revision.
pub async fn current(server: &Server, options: &ListOptions) -> Result<Snapshot> {
    match options.resource_version.as_str() {
        "" => server.consistent().await,
        version => reached(server, version).await,
    }
}

/// Waits until this server has seen a revision.
pub async fn reached(server: &Server, resource_version: &str) -> Result<Snapshot> {
    let revision = parse_revision(resource_version)?;
    server.store.at_least(revision).await.map_err(|error| too_new(error, revision))
}

/// A resourceVersion as a revision; "" and "0" are any.
pub fn parse_revision(text: &str) -> Result<Revision> {
    let unreadable = || FieldError::invalid(&Path::new("resourceVersion"), text, format!("strconv.ParseUint: parsing {text:?}: invalid syntax"));
    match text {
        "" => Ok(0),
        text => text.parse().map_err(|_| Status::bad_request(unreadable().to_string())),
    }
}

fn too_new(error: ReadError, asked: Revision) -> Status {
    match error {
        ReadError::Future(current) => Status::too_large_resource_version(asked, current),
        ReadError::Compacted(_) => Status::expired("The resourceVersion for the provided list is too old."),
    }
}

/// Where a list goes on: opaque to clients.
struct Token {
    /// `None` (-1 on the wire) goes on at whatever is there.
    revision: Option<Revision>,
    namespace: String,
    name: String,
}

impl Token {
    fn encode(&self) -> String {
        let text = json!({"v": "meta.k8s.io/v1", "rv": self.revision.map_or(-1, |it| i64::try_from(it).unwrap_or(i64::MAX)), "start": format!("{}/{}", self.namespace, self.name)}).to_string();
        URL_SAFE_NO_PAD.encode(text)
    }

    /// `DecodeContinue`.
    fn decode(text: &str) -> Result<Self> {
        const VERSION: &str = "meta.k8s.io/v1";
        let bad = |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|why| bad(illegal(why)))?;
        let (token, _) = codec::parse_json(&bytes).map_err(|why| bad(why.message))?;
        if token.text("v") != VERSION {
            return Err(bad(format!("server does not recognize this encoded version {}", token.text("v"))));
        }
        let revision = match token.int_at(&["rv"]).unwrap_or(0) {
            -1 => None,
            0 => return Err(bad(format!("incorrect encoded start resourceVersion (version {VERSION})"))),
            revision => Some(u64::try_from(revision).map_err(|_| bad(format!("incorrect encoded start resourceVersion (version {VERSION})")))?),
        };
        let (namespace, name) = match token.text("start").split_once('/') {
            _ if token.text("start").is_empty() => return Err(bad(format!("encoded start key empty (version {VERSION})"))),
            Some((namespace, name)) if !namespace.starts_with("..") => (namespace, name),
            _ => return Err(bad(token.text("start").to_owned())),
        };
        Ok(Self { revision, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// Go's sentence for what is no base64.
fn illegal(why: DecodeError) -> String {
    let at = match why {
        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol { offset: at, .. } => at,
        _ => 0,
    };
    format!("illegal base64 data at input byte {at}")
}
