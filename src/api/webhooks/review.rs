//! `AdmissionReview`: the question to a webhook, and what its answer says. Pure.
//! Source: apiserver `pkg/admission/plugin/webhook/{request/admissionreview.go,errors/statuserror.go}`.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::hook::Hook;
use crate::meta::{GroupVersionKind, Meta, Status, Value, status::Details};

/// A question that is on its way.
pub struct Review {
    uid: String,
    version: &'static str,
    pub request: Value,
}

/// What a webhook says.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    pub is_allowed: bool,
    /// The operations of a JSON patch; empty for none.
    pub patch: Vec<u8>,
    pub warnings: Vec<String>,
    result: Value,
}

impl Review {
    /// In the first version that the webhook names and this server knows; the uid is filled in.
    pub fn new(hook: &Hook, mut request: Value) -> Result<Self, String> {
        let known = hook.review_versions.iter().find_map(|it| ["v1", "v1beta1"].into_iter().find(|known| known == it));
        let version = known.ok_or("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)")?;
        let uid = uuid::Uuid::new_v4().to_string();
        request["uid"] = uid.as_str().into();
        let request = json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request});
        Ok(Self { uid, version, request })
    }

    /// Reads the answer (`VerifyAdmissionResponse`). In v1beta1 neither type nor uid nor the patch's type was ever checked.
    pub fn read(&self, answer: &Value, is_mutating: bool) -> Result<Verdict, String> {
        let response = answer.get("response").filter(|it| it.is_object()).ok_or("webhook response was absent")?;
        let patch = STANDARD.decode(response.text("patch")).map_err(|why| format!("illegal base64 data in response.patch: {why}"))?;
        if self.version == "v1" {
            self.check(answer, response, &patch, is_mutating)?;
        }
        Ok(Verdict {
            is_allowed: response["allowed"] == true,
            patch: if is_mutating { patch } else { Vec::new() },
            warnings: response.texts_at(&["warnings"]).map(str::to_owned).collect(),
            result: response.get("status").cloned().unwrap_or_default(),
        })
    }

    fn check(&self, answer: &Value, response: &Value, patch: &[u8], is_mutating: bool) -> Result<(), String> {
        if response.text("uid") != self.uid {
            return Err(format!("expected response.uid={:?}, got {:?}", self.uid, response.text("uid")));
        }
        let found = GroupVersionKind::of(answer);
        if (found.group.as_ref(), found.version.as_ref(), found.kind.as_ref()) != ("admission.k8s.io", "v1", "AdmissionReview") {
            let (group, version, kind) = (found.group, found.version, found.kind);
            return Err(format!("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {group}/{version}, Kind={kind}"));
        }
        let patch_type = response.get("patchType").filter(|it| !it.is_null()).map(|it| it.as_str().unwrap_or_default());
        let text = match (is_mutating, patch.is_empty(), patch_type) {
            (true, false, None) => "webhook returned response.patch but not response.patchType",
            (true, true, Some(_)) => "webhook returned response.patchType but not response.patch",
            (true, false, Some("")) => "webhook returned invalid response.patchType of \"\"",
            (true, false, Some(other)) if other != "JSONPatch" => return Err(format!("unsupported patch type {other:?}")),
            (false, false, _) => "validating webhook may not return response.patch",
            (false, true, Some(_)) => "validating webhook may not return response.patchType",
            _ => return Ok(()),
        };
        Err(text.to_owned())
    }
}

impl Verdict {
    /// The refusal as clients see it (`ToStatusErr`).
    pub fn refusal(&self, name: &str) -> Status {
        let denied = format!("admission webhook {name:?} denied the request");
        let (message, reason) = (self.result.text("message"), self.result.text("reason"));
        let message = match (message, reason) {
            ("", "") => format!("{denied} without explanation"),
            ("", reason) => format!("{denied}: {reason}"),
            (message, _) => format!("{denied}: {message}"),
        };
        let code = self.result.int_at(&["code"]).and_then(|it| u16::try_from(it).ok()).filter(|it| (400..600).contains(it)).unwrap_or(400);
        let mut status = Status::new(code, "", message);
        status.reason = reason.to_owned().into();
        status.details = self.result.get("details").map(|it| Box::new(Details::from_value(it)));
        status
    }
}

/// A webhook that may change more than the object cannot be asked in a dry run (`NewDryRunUnsupportedErr`).
pub fn dry_run_unsupported(name: &str) -> Status {
    Status::bad_request(format!("admission webhook {name:?} does not support dry run"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(versions: &[&str]) -> Hook {
        Hook::all(&json!({"webhooks": [{"name": "h", "admissionReviewVersions": versions}]})).remove(0)
    }

    #[test]
    fn an_answer_must_be_one() {
        let review = Review::new(&hook(&["v2", "v1"]), json!({})).expect("a known version");
        let answer = |more: Value| {
            let mut response = json!({"uid": review.uid, "allowed": true});
            more.as_object().into_iter().flatten().for_each(|(name, value)| response[name] = value.clone());
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
        };
        let cases = [
            (json!({}), true, None),
            (json!({"uid": "x"}), true, Some(format!("expected response.uid={:?}, got \"x\"", review.uid))),
            (json!({"patch": "W10=", "patchType": "JSONPatch"}), true, None),
            (json!({"patch": "W10="}), true, Some("webhook returned response.patch but not response.patchType".to_owned())),
            (json!({"patchType": "JSONPatch"}), true, Some("webhook returned response.patchType but not response.patch".to_owned())),
            (json!({"patch": "W10=", "patchType": "Other"}), true, Some("unsupported patch type \"Other\"".to_owned())),
            (json!({"patch": "W10=", "patchType": "JSONPatch"}), false, Some("validating webhook may not return response.patch".to_owned())),
        ];
        for (more, is_mutating, expected) in cases {
            assert_eq!(review.read(&answer(more.clone()), is_mutating).err(), expected, "{more}");
        }
        assert_eq!(review.read(&json!({}), true).err().as_deref(), Some("webhook response was absent"));
        let old = Review::new(&hook(&["v1beta1"]), json!({})).expect("a known version");
        assert_eq!(old.read(&json!({"response": {"allowed": true, "patch": "W10="}}), true).map(|it| it.patch), Ok(b"[]".to_vec()));
        assert!(Review::new(&hook(&["v3"]), json!({})).is_err());
    }

    #[test]
    fn refusals_read_as_upstreams() {
        let refusal = |result: Value| {
            let status = Verdict { is_allowed: false, patch: Vec::new(), warnings: Vec::new(), result }.refusal("h.x.y");
            (status.code, status.reason.to_string(), status.message)
        };
        let cases = [
            (json!(null), 400, "", "admission webhook \"h.x.y\" denied the request without explanation"),
            (json!({"message": "no"}), 400, "", "admission webhook \"h.x.y\" denied the request: no"),
            (json!({"reason": "NotSo", "code": 403}), 403, "NotSo", "admission webhook \"h.x.y\" denied the request: NotSo"),
            (json!({"code": 200, "message": "ok?"}), 400, "", "admission webhook \"h.x.y\" denied the request: ok?"),
        ];
        for (result, code, reason, message) in cases {
            assert_eq!(refusal(result), (code, reason.to_owned(), message.to_owned()));
        }
    }
}
