//! The `components.schemas` part of a document: types as JSON schema with Kubernetes'
//! extensions.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::Members;
use crate::resource::Resource;
use crate::schema::{Descriptions, Element, Field, ListType, Scalar, Shape, TypeRef, table};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// What requests and answers of every resource may hold besides its own kind.
const SHARED: [&str; 4] = ["DeleteOptions", "Patch", "Status", "WatchEvent"];

/// Writes the schemas that `resources` need, and all that those refer to, by name.
pub(super) fn write<'a, W: Write>(
    into: &mut Members<W>,
    resources: impl Iterator<Item = &'a Resource>,
) -> io::Result<()> {
    let mut descriptions = Descriptions::default();
    for of in closure(resources) {
        into.member(of.name(), &schema(of, &mut descriptions))?;
    }
    Ok(())
}

/// A reference to the schema of `of`.
pub(super) fn reference(of: TypeRef) -> Value {
    json!({"$ref": format!("#/components/schemas/{}", of.name())})
}

/// The type in meta/v1 called `name`.
pub(super) fn meta(name: &str) -> TypeRef {
    table().by_name(&format!("{META}{name}")).expect("the table has all of meta/v1")
}

fn closure<'a>(resources: impl Iterator<Item = &'a Resource>) -> BTreeSet<TypeRef> {
    let mut queue: Vec<TypeRef> = SHARED.iter().map(|name| meta(name)).collect();
    for resource in resources {
        let (group, version) = (resource.group, resource.version);
        queue.extend(table().kind(group, version, resource.kind));
        queue.extend(table().kind(group, version, resource.list_kind));
        for sub in resource.subresources {
            queue.extend(table().kind(sub.kind.group, sub.kind.version, sub.kind.kind));
        }
    }
    let mut found = BTreeSet::new();
    while let Some(of) = queue.pop() {
        if found.insert(of) {
            queue.extend(of.fields().filter_map(Field::definition));
        }
    }
    found
}

fn schema(of: TypeRef, descriptions: &mut Descriptions) -> Value {
    let mut schema = match of.scalar() {
        Some(scalar) => scalar_schema(scalar),
        None => Map::from_iter([("type".to_owned(), json!("object"))]),
    };
    describe(&mut schema, descriptions.of_type(of));
    if of.scalar().is_some() {
        return Value::Object(schema);
    }
    let required: Vec<_> = of.fields().filter(|f| f.required()).map(Field::name).collect();
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    let properties: Map<_, _> =
        of.fields().map(|field| (field.name().to_owned(), property(field, descriptions))).collect();
    if !properties.is_empty() {
        schema.insert("properties".to_owned(), Value::Object(properties));
    }
    let kinds: Vec<_> = of
        .kinds()
        .map(|k| json!({"group": k.group, "kind": k.kind, "version": k.version}))
        .collect();
    if !kinds.is_empty() {
        schema.insert("x-kubernetes-group-version-kind".to_owned(), json!(kinds));
    }
    if of.is_atomic() {
        schema.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    Value::Object(schema)
}

fn property(field: Field, descriptions: &mut Descriptions) -> Value {
    let mut property = match field.shape() {
        // Beside a `$ref` nothing else counts, so it goes into an `allOf`.
        Shape::Object(_) | Shape::Scalar(_) if field.definition().is_some() => {
            Map::from_iter([("allOf".to_owned(), json!([element(field)]))])
        }
        Shape::List(_) => Map::from_iter([
            ("type".to_owned(), json!("array")),
            ("items".to_owned(), element(field)),
        ]),
        Shape::Map(_) => Map::from_iter([
            ("type".to_owned(), json!("object")),
            ("additionalProperties".to_owned(), element(field)),
        ]),
        Shape::Object(of) => Map::from_iter([("allOf".to_owned(), json!([reference(of)]))]),
        Shape::Scalar(scalar) => scalar_schema(scalar),
    };
    describe(&mut property, descriptions.of_field(field));
    if let Some(default) = field.key_default() {
        property.insert("default".to_owned(), json!(default));
    }
    if let Some(list_type) = field.explicit_list_type() {
        let text = match list_type {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        };
        property.insert("x-kubernetes-list-type".to_owned(), json!(text));
    }
    let keys: Vec<_> = field.list_map_keys().collect();
    if !keys.is_empty() {
        property.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
    }
    if let Some(is_atomic) = field.explicit_map_atomic() {
        let text = if is_atomic { "atomic" } else { "granular" };
        property.insert("x-kubernetes-map-type".to_owned(), json!(text));
    }
    let strategy = field.patch_strategy();
    let strategies: Vec<_> = [
        (strategy.merge, "merge"),
        (strategy.replace, "replace"),
        (strategy.retain_keys, "retainKeys"),
    ]
    .into_iter()
    .filter_map(|(is_set, name)| is_set.then_some(name))
    .collect();
    if !strategies.is_empty() {
        property.insert("x-kubernetes-patch-strategy".to_owned(), json!(strategies.join(",")));
    }
    if let Some(key) = field.merge_key() {
        property.insert("x-kubernetes-patch-merge-key".to_owned(), json!(key));
    }
    Value::Object(property)
}

/// The schema of one value of the field: itself, or an element of its list or map.
fn element(field: Field) -> Value {
    match (field.definition(), field.shape()) {
        (Some(of), _) => reference(of),
        (None, Shape::Map(Element::Strings)) => {
            json!({"type": "array", "items": {"type": "string"}})
        }
        (
            None,
            Shape::Scalar(scalar)
            | Shape::List(Element::Scalar(scalar))
            | Shape::Map(Element::Scalar(scalar)),
        ) => Value::Object(scalar_schema(scalar)),
        (None, _) => json!({}),
    }
}

fn scalar_schema(scalar: Scalar) -> Map<String, Value> {
    let schema = match scalar {
        Scalar::String | Scalar::Duration => json!({"type": "string"}),
        Scalar::Bytes => json!({"type": "string", "format": "byte"}),
        Scalar::Bool => json!({"type": "boolean"}),
        Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
        Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
        Scalar::Float => json!({"type": "number", "format": "double"}),
        Scalar::Time | Scalar::MicroTime => json!({"type": "string", "format": "date-time"}),
        Scalar::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Scalar::IntOrString => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Scalar::Json => json!({}),
        Scalar::FieldsV1 | Scalar::RawObject => json!({"type": "object"}),
    };
    match schema {
        Value::Object(schema) => schema,
        _ => unreachable!("all of the above are objects"),
    }
}

fn describe(schema: &mut Map<String, Value>, description: &str) {
    if !description.is_empty() {
        schema.insert("description".to_owned(), json!(description));
    }
}
