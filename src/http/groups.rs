//! `/v1/groups`: who is in a group (CONTRACT.md 6).

use super::auth::Backend;
use super::body;
use super::problem::{Code, Flaw, Problem};
use super::stream::query;
use crate::domain::seat::{GroupId, UserId};
use crate::ports::MemberChange;
use crate::relay::handle::Relay;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse, delete, get, post, put};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use utoipa::{IntoParams, ToSchema};

/// A change names at most so many of each kind.
const CHANGE_MAX: usize = 1_000;
const PAGE_MAX: usize = 1_000;
const PAGE_DEFAULT: usize = 100;

fn group_of(text: &str) -> Result<GroupId, Problem> {
    GroupId::parse(text).map_err(|error| Problem::new(Code::NotFound, format!("no such group: the name {error}")))
}

/// Add a member
#[utoipa::path(
    tag = "groups",
    operation_id = "add_member",
    params(("group" = String, Path, description = "The group"), ("user" = String, Path, description = "The user")),
    responses(
        (status = 204, description = "A member now"),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 422, response = super::openapi::Invalid),
        (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[put("/v1/groups/{group}/members/{user}")]
pub(super) async fn add_member(
    _: Backend,
    path: Path<(String, String)>,
    relay: Data<Relay>,
) -> Result<HttpResponse, Problem> {
    change_one(&path, &relay, |user| MemberChange { add: vec![user], remove: vec![] }).await
}

/// Remove a member
#[utoipa::path(
    tag = "groups",
    operation_id = "remove_member",
    params(("group" = String, Path, description = "The group"), ("user" = String, Path, description = "The user")),
    responses(
        (status = 204, description = "No member now"),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[delete("/v1/groups/{group}/members/{user}")]
pub(super) async fn remove_member(
    _: Backend,
    path: Path<(String, String)>,
    relay: Data<Relay>,
) -> Result<HttpResponse, Problem> {
    change_one(&path, &relay, |user| MemberChange { add: vec![], remove: vec![user] }).await
}

async fn change_one(
    (group, user): &(String, String),
    relay: &Data<Relay>,
    change: impl Fn(UserId) -> MemberChange,
) -> Result<HttpResponse, Problem> {
    let user =
        UserId::parse(user).map_err(|error| Problem::new(Code::NotFound, format!("no such user: the name {error}")))?;
    relay.change_members(&group_of(group)?, change(user)).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Up to 1,000 users to add and to remove; duplicates count once.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MemberChange)]
pub(super) struct ChangeBody {
    #[serde(default)]
    #[schema(schema_with = super::schema::members)]
    add: Vec<String>,
    #[serde(default)]
    #[schema(schema_with = super::schema::members)]
    remove: Vec<String>,
}

/// How many were added and removed, not counting those who were members before, or none; and how many there are now.
#[derive(Serialize, ToSchema)]
#[schema(as = MemberCounts)]
pub(super) struct CountsReply {
    added: usize,
    removed: usize,
    members: usize,
}

/// Change many members
///
/// All or nothing.
#[utoipa::path(
    tag = "groups",
    operation_id = "change_members",
    params(("group" = String, Path, description = "The group")),
    request_body = ChangeBody,
    responses(
        (status = 200, description = "Changed", body = CountsReply),
        (status = 400, response = super::openapi::BadJson), (status = 401, response = super::openapi::Unauthorized),
        (status = 403, response = super::openapi::Forbidden), (status = 404, response = super::openapi::NotFound),
        (status = 413, response = super::openapi::TooLarge), (status = 415, response = super::openapi::NotJson),
        (status = 422, response = super::openapi::Invalid), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[post("/v1/groups/{group}/members")]
pub(super) async fn change_members(
    _: Backend,
    group: Path<String>,
    request: HttpRequest,
    relay: Data<Relay>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let group = group_of(&group)?;
    let json = body::read_json(&request, payload, body::SMALL).await?;
    let change = change(&body::parse(&json)?)?;
    let (added, removed, members) = relay.change_members(&group, change).await?;
    Ok(HttpResponse::Ok().json(CountsReply { added, removed, members }))
}

fn change(body: &ChangeBody) -> Result<MemberChange, Problem> {
    let mut flaws = vec![];
    let add = names("/add", &body.add, &mut flaws);
    let remove = names("/remove", &body.remove, &mut flaws);
    let added: HashSet<&UserId> = add.iter().collect();
    if let Some(user) = remove.iter().find(|user| added.contains(user)) {
        flaws.push(Flaw::new("/remove", format!("names {user:?}, who is to be added too")));
    }
    if flaws.is_empty() { Ok(MemberChange { add, remove }) } else { Err(Problem::invalid(flaws)) }
}

fn names(pointer: &str, given: &[String], flaws: &mut Vec<Flaw>) -> Vec<UserId> {
    if given.len() > CHANGE_MAX {
        flaws.push(Flaw::new(pointer, format!("has {} users, and {CHANGE_MAX} are allowed", given.len())));
        return vec![];
    }
    let mut seen = HashSet::new();
    let mut users = vec![];
    for (n, name) in given.iter().enumerate() {
        match UserId::parse(name) {
            Ok(user) if seen.insert(name) => users.push(user),
            Ok(_) => {}
            Err(error) => flaws.push(Flaw::new(format!("{pointer}/{n}"), error)),
        }
    }
    users
}

/// Which part of the members.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MembersQuery {
    /// `next` of the page before.
    #[param(min_length = 1, max_length = 128, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    after: Option<String>,
    /// At most so many, 1 to 1,000; 100 if not said.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// A part of a group's members, in the order of their names.
#[derive(Serialize, ToSchema)]
#[schema(as = Members)]
pub(super) struct MembersReply<'a> {
    #[schema(value_type = Vec<String>)]
    members: &'a [UserId],
    /// Ask for those after this next; missing if these are the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, nullable = false)]
    next: Option<&'a UserId>,
    /// Others follow.
    more: bool,
}

/// List members
#[utoipa::path(
    tag = "groups",
    operation_id = "list_members",
    params(("group" = String, Path, description = "The group"), MembersQuery),
    responses(
        (status = 200, description = "A page; empty for a group without members", body = MembersReply),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 422, response = super::openapi::Invalid),
        (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[get("/v1/groups/{group}/members")]
pub(super) async fn list_members(
    _: Backend,
    group: Path<String>,
    request: HttpRequest,
    relay: Data<Relay>,
) -> Result<HttpResponse, Problem> {
    let group = group_of(&group)?;
    let asked: MembersQuery = query(request.query_string())?;
    let limit = asked.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::flaw("?limit", format!("must be 1 to {PAGE_MAX}")));
    }
    let after = asked.after.as_deref().map(UserId::parse).transpose();
    let after = after.map_err(|error| Problem::flaw("?after", error))?;
    // One more tells whether others follow.
    let mut members = relay.members(&group, after.as_ref(), limit + 1).await?;
    let more = members.len() > limit;
    members.truncate(limit);
    let next = members.last().filter(|_| more);
    Ok(HttpResponse::Ok().json(MembersReply { members: &members, next, more }))
}

/// Delete a group
#[utoipa::path(
    tag = "groups",
    operation_id = "delete_group",
    params(("group" = String, Path, description = "The group")),
    responses(
        (status = 204, description = "It has no members now"),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[delete("/v1/groups/{group}")]
pub(super) async fn delete_group(_: Backend, group: Path<String>, relay: Data<Relay>) -> Result<HttpResponse, Problem> {
    relay.delete_group(&group_of(&group)?).await?;
    Ok(HttpResponse::NoContent().finish())
}
