//! `AdmissionReview`: what the answer of a webhook says. Pure.
//! Source: apiserver `pkg/admission/plugin/webhook/{request/admissionreview.go,errors/statuserror.go}`.

use base64::{Engine, engine::general_purpose::STANDARD};
use super::Review;
use crate::meta::{Meta, Status, Value, status::Details};

/// What a webhook says.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    pub is_allowed: bool,
    /// The operations of a JSON patch; empty for none.
    pub patch: Vec<u8>,
    pub warnings: Vec<String>,
    result: Value,
}

impl Verdict {
    /// Reads the answer (`VerifyAdmissionResponse`). In v1beta1 the patch's type was never checked.
    pub fn read(review: &Review, answer: &Value, is_mutating: bool) -> Result<Self, String> {
        let response = answer.get("response").filter(|it| it.is_object()).ok_or("webhook response was absent")?;
        let patch = STANDARD.decode(response.text("patch")).map_err(|why| format!("illegal base64 data in response.patch: {why}"))?;
        review.check_uid(response)?;
        review.check_type(answer)?;
        if review.is_strict() {
            check_patch(response, &patch, is_mutating)?;
        }
        Ok(Self {
            is_allowed: response["allowed"] == true,
            patch: if is_mutating { patch } else { Vec::new() },
            warnings: response.texts_at(&["warnings"]).map(str::to_owned).collect(),
            result: response.get("status").cloned().unwrap_or_default(),
        })
    }

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

fn check_patch(response: &Value, patch: &[u8], is_mutating: bool) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(versions: &[&str]) -> Option<Review> {
        let versions: Vec<String> = versions.iter().map(|it| (*it).to_owned()).collect();
        Review::new("admission.k8s.io", "AdmissionReview", &versions, json!({}))
    }

    #[test]
    fn an_answer_must_be_one() {
        let review = asked(&["v2", "v1"]).expect("a known version");
        let answer = |more: Value| {
            let mut response = json!({"uid": review.uid(), "allowed": true});
            more.as_object().into_iter().flatten().for_each(|(name, value)| response[name] = value.clone());
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
        };
        let cases = [
            (json!({}), true, None),
            (json!({"uid": "x"}), true, Some(format!("expected response.uid={:?}, got \"x\"", review.uid()))),
            (json!({"patch": "W10=", "patchType": "JSONPatch"}), true, None),
            (json!({"patch": "W10="}), true, Some("webhook returned response.patch but not response.patchType".to_owned())),
            (json!({"patchType": "JSONPatch"}), true, Some("webhook returned response.patchType but not response.patch".to_owned())),
            (json!({"patch": "W10=", "patchType": "Other"}), true, Some("unsupported patch type \"Other\"".to_owned())),
            (json!({"patch": "W10=", "patchType": "JSONPatch"}), false, Some("validating webhook may not return response.patch".to_owned())),
        ];
        for (more, is_mutating, expected) in cases {
            assert_eq!(Verdict::read(&review, &answer(more.clone()), is_mutating).err(), expected, "{more}");
        }
        assert_eq!(Verdict::read(&review, &json!({}), true).err().as_deref(), Some("webhook response was absent"));
        let old = asked(&["v1beta1"]).expect("a known version");
        assert_eq!(Verdict::read(&old, &json!({"response": {"allowed": true, "patch": "W10="}}), true).map(|it| it.patch), Ok(b"[]".to_vec()));
        assert!(asked(&["v3"]).is_none());
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
