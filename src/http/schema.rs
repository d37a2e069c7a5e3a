//! What the OpenAPI document says of a send. Which fields go together depends on its kind, which the fields of one Rust type can't say.

use std::borrow::Cow;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// No control characters, as JSON Schema says it.
const NAME: &str = "^[^\\x00-\\x1f\\x7f-\\x9f]+$";
/// In milliseconds, what `store.retention_s` may be at most.
const RETENTION_MAX_MS: u64 = 315_360_000_000;

/// The body of `POST /v1/messages`.
pub(super) struct Send;

impl PartialSchema for Send {
    fn schema() -> RefOr<Schema> {
        let kinds = ["SendOnlineOnly", "SendPersisted", "SendPersistedToGroup"].into_iter().map(Ref::from_schema_name);
        kinds.fold(OneOfBuilder::new().description(Some("A message to send.")), OneOfBuilder::item).into()
    }
}

impl ToSchema for Send {
    fn name() -> Cow<'static, str> {
        "Send".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("To".to_owned(), to()));
        schemas.push(("SendOnlineOnly".to_owned(), online_only()));
        schemas.push(("ToUsers".to_owned(), to_users().into()));
        schemas.push(("ToGroup".to_owned(), to_group().into()));
        schemas.push(("SendPersisted".to_owned(), persisted()));
        schemas.push(("SendPersistedToGroup".to_owned(), persisted_to_group()));
    }
}

/// To whom a message was sent, as answers show it.
pub(super) struct SentTo;

impl PartialSchema for SentTo {
    fn schema() -> RefOr<Schema> {
        let one = |field: &str, value: RefOr<Schema>| {
            of_type(Type::Object).property(field, value).required(field).additional_properties(Some(closed()))
        };
        let users = ArrayBuilder::new().items(name(128)).into();
        OneOfBuilder::new().item(one("users", users)).item(one("group", name(128).into())).into()
    }
}

impl ToSchema for SentTo {
    fn name() -> Cow<'static, str> {
        "SentTo".into()
    }
}

/// `users` of a body.
pub(super) fn users() -> RefOr<Schema> {
    ArrayBuilder::new()
        .items(name(128))
        .min_items(Some(1))
        .max_items(Some(1_000))
        .description(Some("1 to 1,000 users."))
        .into()
}

fn of_type(schema_type: impl Into<SchemaType>) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(schema_type)
}

fn or_null(schema_type: Type) -> ObjectBuilder {
    of_type(SchemaType::from_iter([schema_type, Type::Null]))
}

fn name(max: usize) -> ObjectBuilder {
    of_type(Type::String).min_length(Some(1)).max_length(Some(max)).pattern(Some(NAME))
}

fn null(why: &str) -> ObjectBuilder {
    of_type(Type::Null).description(Some(why))
}

fn to() -> RefOr<Schema> {
    let kinds = ["ToUsers", "ToGroup"].into_iter().map(Ref::from_schema_name);
    kinds.fold(OneOfBuilder::new().description(Some("Exactly one of the two.")), OneOfBuilder::item).into()
}

fn to_users() -> ObjectBuilder {
    to_one("users", users(), "group", "Users: each gets it once, however often it is named.")
}

fn to_group() -> ObjectBuilder {
    to_one("group", name(128).description(Some("A group.")).into(), "users", "The members of a group.")
}

fn to_one(field: &str, value: RefOr<Schema>, other: &str, description: &str) -> ObjectBuilder {
    let fields = of_type(Type::Object).property(field, value).required(field).property(other, of_type(Type::Null));
    fields.additional_properties(Some(closed())).description(Some(description))
}

/// `add` and `remove` of a change of members.
pub(super) fn members() -> RefOr<Schema> {
    ArrayBuilder::new().items(name(128)).max_items(Some(1_000)).into()
}

fn closed() -> utoipa::openapi::schema::AdditionalProperties<Schema> {
    utoipa::openapi::schema::AdditionalProperties::FreeForm(false)
}

/// The fields that both kinds have.
fn send(to: &str, description: &str) -> ObjectBuilder {
    let payload = of_type(SchemaType::AnyValue)
        .description(Some("Any JSON, up to `limits.payload_bytes`; relayed byte for byte."));
    let fields = of_type(Type::Object)
        .description(Some(description))
        .property("from", name(128).examples(["alice"]).description(Some("The sender, a user.")))
        .property("to", Ref::from_schema_name(to))
        .property("type", name(64).examples(["typing"]).description(Some("The application's own word.")))
        .property("payload", payload)
        .additional_properties(Some(closed()));
    ["from", "to", "type", "payload"].into_iter().fold(fields, ObjectBuilder::required)
}

fn ttl_ms(max: u64, description: &str) -> ObjectBuilder {
    or_null(Type::Integer).minimum(Some(1_u64)).maximum(Some(max)).description(Some(description))
}

fn online_only() -> RefOr<Schema> {
    let deliver_to = or_null(Type::String)
        .enum_values(Some([Some("one_device"), Some("every_device"), None]))
        .description(Some("On one device of a recipient (the default) or on every one."));
    let collapse_key = or_null(Type::String).min_length(Some(1)).max_length(Some(128)).pattern(Some(NAME)).description(
        Some("A newer message to the same device with the same key takes the place of one that still waits."),
    );
    let sync_sender = or_null(Type::Boolean).enum_values(Some([Some(false), None]));
    send("To", "It reaches who is here now, or nobody. It is never stored.")
        .property("online_only", of_type(Type::Boolean).enum_values(Some([true])))
        .required("online_only")
        .property("deliver_to", deliver_to)
        .property("ttl_ms", ttl_ms(60_000, "How long it may wait in a slow device's queue; 5,000 if not said."))
        .property("collapse_key", collapse_key)
        .property("sync_sender", sync_sender.description(Some("For persisted messages.")))
        .property("push", null("For persisted messages: this one is never pushed."))
        .into()
}

fn persisted() -> RefOr<Schema> {
    let sync_sender =
        or_null(Type::Boolean).description(Some("Also into the sender's own inbox, which shows to whom it was sent."));
    persisted_to("ToUsers", sync_sender)
}

fn persisted_to_group() -> RefOr<Schema> {
    let sync_sender = or_null(Type::Boolean).enum_values(Some([Some(false), None]));
    persisted_to("ToGroup", sync_sender.description(Some("For messages to users.")))
}

fn persisted_to(to: &str, sync_sender: ObjectBuilder) -> RefOr<Schema> {
    let kept = "How long it is kept: at most `store.retention_s`, which it is if not said.";
    let push = OneOfBuilder::new()
        .description(Some("An object of up to 4 KiB for the push callback, or `false` for no push."))
        .item(of_type(Type::Object))
        .item(of_type(Type::Boolean).enum_values(Some([false])))
        .item(of_type(Type::Null));
    send(to, "It is durable before it is answered, reaches every device, and waits for those that are away.")
        .property("online_only", of_type(Type::Boolean).enum_values(Some([false])))
        .property("deliver_to", null("For online-only messages: this one goes to every device."))
        .property("ttl_ms", ttl_ms(RETENTION_MAX_MS, kept))
        .property("collapse_key", null("For online-only messages."))
        .property("sync_sender", sync_sender)
        .property("push", push)
        .into()
}
