//! Kinds that are only the answer to a question: TokenReview, SubjectAccessReview and its relatives, SelfSubjectReview, TokenRequest.

use super::{Server, identity::User};
use crate::{
    kinds::Kind,
    meta::{Result, Value},
};

/// Answers a create of a review kind: the object with its status. `namespace` is that of the path.
pub async fn answer(server: &Server, user: &User, kind: &Kind, namespace: &str, review: Value) -> Result<Value> {
    let _ = (server, user, kind, namespace, review);
    todo!()
}

/// `serviceaccounts/{name}/token`: a TokenRequest with its status. `account` is the stored ServiceAccount.
pub async fn token_request(server: &Server, user: &User, account: &Value, request: Value) -> Result<Value> {
    let _ = (server, user, account, request);
    todo!()
}
