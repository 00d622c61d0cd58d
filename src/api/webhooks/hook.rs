//! One webhook of a configuration, read once. Source: apiserver `pkg/admission/plugin/webhook/accessors.go`.

use std::time::Duration;

use super::super::{matching::Criteria, outgoing::Destination};
use crate::{
    kinds::expressions::{Expression, Scope},
    meta::{Meta, Value},
};

#[derive(Debug)]
pub struct Hook {
    pub name: String,
    /// `configuration/name/place`, for the second round.
    pub id: String,
    pub criteria: Criteria,
    pub fails_open: bool,
    /// Nothing but the request's object is changed by it, so that it may be asked in a dry run.
    pub is_harmless: bool,
    pub is_reinvoked: bool,
    pub timeout: Duration,
    pub review_versions: Vec<String>,
    pub destination: Result<Destination, String>,
    pub conditions: Vec<Expression>,
}

impl Hook {
    /// The webhooks of a configuration, in their order.
    pub fn all(configuration: &Value) -> Vec<Self> {
        configuration.items_at(&["webhooks"]).iter().enumerate().map(|(at, it)| Self::new(configuration.name(), at, it)).collect()
    }

    fn new(configuration: &str, at: usize, webhook: &Value) -> Self {
        let seconds = webhook.int_at(&["timeoutSeconds"]).and_then(|it| u64::try_from(it).ok()).unwrap_or(10);
        Self {
            name: webhook.text("name").to_owned(),
            id: format!("{configuration}/{}/{at}", webhook.text("name")),
            criteria: Criteria::of_webhook(webhook),
            fails_open: webhook.text("failurePolicy") == "Ignore",
            is_harmless: matches!(webhook.text("sideEffects"), "None" | "NoneOnDryRun"),
            is_reinvoked: webhook.text("reinvocationPolicy") == "IfNeeded",
            timeout: Duration::from_secs(seconds),
            review_versions: webhook.texts_at(&["admissionReviewVersions"]).map(str::to_owned).collect(),
            destination: Destination::new(&webhook["clientConfig"]),
            conditions: Scope { has_authorizer: true, ..Scope::default() }.conditions(webhook),
        }
    }
}
