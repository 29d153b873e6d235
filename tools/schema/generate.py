#!/usr/bin/env python3
"""Makes api/schema/kubernetes-1.35.bin, the schema table of the crate `api`.

Run by hand when the Kubernetes version moves; the output is checked in. README.md
says where the inputs come from. The layout of the file is written down once, in
api/src/schema/binary.rs, and here in `write`.

    generate.py DEFINITIONS_JSON K8S_PB_SRC OUTPUT_BIN
"""

import collections
import glob
import hashlib
import json
import os
import re
import struct
import sys
import zlib

import go_types

# Packages whose every type is in the table; what they refer to follows.
PACKAGES = [
    "io.k8s.api.core.v1",
    "io.k8s.api.apps.v1",
    "io.k8s.api.batch.v1",
    "io.k8s.api.autoscaling.v1",
    "io.k8s.api.autoscaling.v2",
    "io.k8s.api.policy.v1",
    "io.k8s.api.rbac.v1",
    "io.k8s.api.coordination.v1",
    "io.k8s.api.discovery.v1",
    "io.k8s.api.events.v1",
    "io.k8s.api.networking.v1",
    "io.k8s.api.node.v1",
    "io.k8s.api.scheduling.v1",
    "io.k8s.api.storage.v1",
    "io.k8s.api.certificates.v1",
    "io.k8s.api.authentication.v1",
    "io.k8s.api.authorization.v1",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
    "io.k8s.apimachinery.pkg.apis.meta.v1",
    "io.k8s.apimachinery.pkg.version",
    "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1",
]

STRING, BYTES, BOOL, INT32, INT64, FLOAT = range(6)
TIME, MICRO_TIME, DURATION, QUANTITY, INT_OR_STRING = range(6, 11)
JSON, FIELDS_V1, RAW_OBJECT = 11, 12, 13
JSON_SCHEMA_OR_BOOL, JSON_SCHEMA_OR_ARRAY, JSON_SCHEMA_OR_STRINGS = 14, 15, 16
OBJECT = 255

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
CRD = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
# Definitions that are one JSON value with a rule of its own.
SPECIAL = {
    META + "Time": TIME,
    META + "MicroTime": MICRO_TIME,
    META + "Duration": DURATION,
    META + "FieldsV1": FIELDS_V1,
    META + "Patch": RAW_OBJECT,
    "io.k8s.apimachinery.pkg.api.resource.Quantity": QUANTITY,
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": INT_OR_STRING,
    "io.k8s.apimachinery.pkg.runtime.RawExtension": RAW_OBJECT,
    CRD + "JSON": JSON,
    CRD + "JSONSchemaPropsOrBool": JSON_SCHEMA_OR_BOOL,
    CRD + "JSONSchemaPropsOrArray": JSON_SCHEMA_OR_ARRAY,
    CRD + "JSONSchemaPropsOrStringArray": JSON_SCHEMA_OR_STRINGS,
}

SINGLE, LIST, MAP, MAP_OF_LISTS = range(4)

# Field flags.
REQUIRED = 1 << 0
LIST_TYPES = {"atomic": 1 << 1, "set": 2 << 1, "map": 3 << 1}
PATCH = {"merge": 1 << 3, "replace": 1 << 4, "retainKeys": 1 << 5}
MAP_ATOMIC, MAP_GRANULAR = 1 << 6, 1 << 7
KEEP_ZERO, WRAPPED = 1 << 8, 1 << 9
# Type flags.
TYPE_ATOMIC, TYPE_INLINE = 1, 2

BLOCK_BYTES = 32 * 1024

Field = collections.namedtuple(
    "Field", "name tag container code ref flags description merge_key keys default"
)


def squash(name):
    """`podIPs`, `pod_i_ps` and `x-kubernetes-map-type` as one spelling each."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Messages:
    """The protobuf messages, read from the prost structs of the crate k8s-pb."""

    def __init__(self, source):
        self.fields = {}
        self.by_squashed_name = collections.defaultdict(dict)
        for path in glob.glob(source + "/**/mod.rs", recursive=True):
            module = os.path.relpath(os.path.dirname(path), source).replace("/", ".")
            with open(path) as file:
                text = re.sub(r"^\s*///.*$", "", file.read(), flags=re.M)
            for struct_match in re.finditer(r"pub struct (\w+) \{(\}|\n.*?\n\})", text, re.S):
                key = f"{module}.{struct_match[1]}"
                self.by_squashed_name[module][squash(struct_match[1])] = key
                self.fields[key] = [
                    (m[2], int(re.search(r'tag = "(\d+)"', m[1])[1]), m[1],
                     self.target(module, m[3]))
                    for m in re.finditer(
                        r"#\[prost\(([^\]]*?)\)\]\s*pub (?:r#)?(\w+):\s*(.*?),\n(?=\s*(?:#|\}|\n))",
                        struct_match[2], re.S)
                ]

    @staticmethod
    def target(module, rust_type):
        """The message a field's Rust type names, as module.Struct, else None."""
        inner = re.findall(r"[\w:#]+", rust_type.replace("r#", ""))[-1]
        parts = inner.split("::")
        if "prost" in parts or "core" in parts or inner in ("i32", "i64", "bool", "f64", "u8"):
            return None
        base = module.split(".")
        while parts[0] == "super":
            base, parts = base[:-1], parts[1:]
        return ".".join(base + parts)

    def of(self, definition):
        module = ".".join(definition.split(".")[2:-1]).replace("-", "_")
        name = squash(definition.rsplit(".", 1)[1])
        return self.by_squashed_name.get(module, {}).get(name)


def plain_type(schema):
    kind = schema.get("type")
    return [t for t in kind if t != "null"][0] if isinstance(kind, list) else kind


def scalar_code(schema):
    kind, form = plain_type(schema), schema.get("format")
    code = {
        ("string", None): STRING, ("string", "byte"): BYTES, ("boolean", None): BOOL,
        ("integer", "int32"): INT32, ("integer", "int64"): INT64, ("number", "double"): FLOAT,
    }.get((kind, form))
    assert code is not None, schema
    return code


def element(schema):
    """(code, name of the definition or None) of one value."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return SPECIAL.get(name, OBJECT), name
    return scalar_code(schema), None


def shape(schema):
    """(container, code, definition) of a property."""
    kind = plain_type(schema)
    if kind == "array":
        return (LIST, *element(schema["items"]))
    if kind == "object":
        value = schema["additionalProperties"]
        if plain_type(value) == "array":
            return (MAP_OF_LISTS, *element(value["items"]))
        return (MAP, *element(value))
    return (SINGLE, *element(schema))


def check_wire(where, field, attributes, target):
    """Stops when the protobuf field cannot carry what the definition says."""
    container = field.container
    wire = re.match(r"(\w+)", attributes)[1]
    wire_map = re.search(r'map = "string, (\w+)"', attributes)
    assert (wire_map is not None) == (container in (MAP, MAP_OF_LISTS)), (where, attributes)
    if wire_map:
        wire = wire_map[1]
    wrapped = bool(field.flags & WRAPPED) or container == MAP_OF_LISTS
    if not wrapped:
        assert ("repeated" in attributes) == (container == LIST), (where, attributes)
    expected = {STRING: {"string"}, BYTES: {"bytes"}, BOOL: {"bool"}, INT32: {"int32"},
                INT64: {"int64", "int32"}, FLOAT: {"double"}}.get(field.code, {"message"})
    assert wrapped or wire in expected, (where, wire, expected)


def build_fields(definitions, messages, name, types, inline_types, notes):
    """Fields of the definition `name`, and its inlined messages as (tag, hidden type)."""
    definition = definitions[name]
    properties = definition.get("properties", {})
    required = set(definition.get("required", []))
    short = name.rsplit(".", 1)[1]

    def one(json_name, tag, wrapped):
        schema = properties[json_name]
        container, code, ref = shape(schema)
        flags = 0
        if json_name in required:
            flags |= REQUIRED | KEEP_ZERO
        flags |= LIST_TYPES.get(schema.get("x-kubernetes-list-type"), 0)
        for strategy in schema.get("x-kubernetes-patch-strategy", "").split(","):
            flags |= PATCH[strategy] if strategy else 0
        flags |= {"atomic": MAP_ATOMIC, "granular": MAP_GRANULAR, None: 0}[
            schema.get("x-kubernetes-map-type")]
        if go_types.keeps_zero(short, json_name, code in (STRING, BYTES)):
            flags |= KEEP_ZERO
        if wrapped:
            flags |= WRAPPED
        return Field(json_name, tag, container, code, ref, flags,
                     schema.get("description", ""),
                     schema.get("x-kubernetes-patch-merge-key"),
                     schema.get("x-kubernetes-list-map-keys", []),
                     go_types.DEFAULTS.get((short, json_name)))

    message = messages.of(name)
    left = {squash(p): p for p in properties}
    fields, inlined = [], []
    if message is None and properties:
        notes.append(f"no protobuf message: {name}")
    # Kinds carry apiVersion and kind in the envelope, never in the message.
    for pb_name, tag, attributes, target in messages.fields.get(message, []):
        json_name = left.pop(squash(pb_name), None)
        if json_name is None:
            hidden = inline_target(messages, target, left)
            if hidden is None:
                notes.append(f"only in protobuf: {name} {pb_name} = {tag}")
                continue
            inlined.append((tag, target))
            rows = []
            for inner_name, inner_tag, inner_attributes, inner_target in messages.fields[target]:
                row = one(left.pop(squash(inner_name)), inner_tag, False)
                check_wire((name, row.name), row, inner_attributes, inner_target)
                rows.append(row)
                fields.append(row._replace(tag=0))
            inline_types.setdefault(target, rows)
            continue
        items = messages.fields.get(target, []) if target else []
        wrapped = (plain_type(properties[json_name]) == "array" and "repeated" not in attributes
                   and [f[0] for f in items] == ["items"])
        row = one(json_name, tag, wrapped)
        check_wire((name, json_name), row, attributes, target)
        fields.append(row)
    for json_name in left.values():
        if json_name not in ("apiVersion", "kind") and message is not None:
            notes.append(f"only in JSON: {name} {json_name}")
        fields.append(one(json_name, 0, False))
    fields.sort(key=lambda f: f.name.encode())
    return fields, inlined


def inline_target(messages, target, left):
    """`target` if every field of that message is a property nobody has claimed yet."""
    inner = messages.fields.get(target, []) if target else []
    return target if inner and all(squash(f[0]) in left for f in inner) else None


def closure(definitions):
    wanted, queue = set(), [
        n for n in definitions if n.rsplit(".", 1)[0] in PACKAGES
    ]
    while queue:
        name = queue.pop()
        if name in wanted:
            continue
        wanted.add(name)
        if name not in SPECIAL or name.startswith(CRD):
            queue += re.findall(r'"#/\$defs/([\w.\-]+)"', json.dumps(definitions[name]))
    return sorted(wanted, key=str.encode)


class Pool:
    """Strings of at most 255 bytes, each stored once; 0 means none."""

    def __init__(self):
        self.bytes, self.offsets = bytearray(b"\0"), {}

    def add(self, text):
        if text is None:
            return 0
        if text not in self.offsets:
            data = text.encode()
            self.offsets[text] = len(self.bytes)
            self.bytes += struct.pack("B", len(data)) + data
        return self.offsets[text]


class Descriptions:
    """Texts in blocks that are compressed one by one; id 0 is the empty text."""

    def __init__(self):
        self.places, self.ids = [(0, 0, 0)], {"": 0}
        self.blocks, self.current = [], bytearray()

    def add(self, text):
        if text not in self.ids:
            data = text.encode()
            if len(self.current) + len(data) > BLOCK_BYTES:
                self.flush()
            self.ids[text] = len(self.places)
            self.places.append((len(self.blocks), len(self.current), len(data)))
            self.current += data
        return self.ids[text]

    def flush(self):
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        self.blocks.append(
            (len(self.current), compressor.compress(bytes(self.current)) + compressor.flush()))
        self.current = bytearray()


def write(names, definitions, built, inline_types):
    pool, descriptions = Pool(), Descriptions()
    hidden = sorted(inline_types)
    index = {n: i for i, n in enumerate(names)}
    index_hidden = {n: len(names) + i for i, n in enumerate(hidden)}
    types, fields, gvks, inlines, keys = [], [], [], [], []

    def add_type(name, code, flags, description, rows, inlined, gvk_rows):
        types.append(struct.pack(
            "<IHHHHHBBBx", pool.add(name), len(fields), len(rows), len(gvks), len(inlines),
            description, len(gvk_rows), len(inlined), code) + struct.pack("<H", flags))
        gvks.extend(gvk_rows)
        inlines.extend(struct.pack("<HH", tag, index_hidden[t]) for tag, t in inlined)
        for row in rows:
            key_start = len(keys)
            keys.extend(struct.pack("<I", pool.add(k)) for k in row.keys)
            fields.append(struct.pack(
                "<IIIHHHHHBBBx", pool.add(row.name), pool.add(row.merge_key),
                pool.add(row.default), row.tag, index[row.ref] if row.ref else 0xFFFF,
                row.flags, descriptions.add(row.description), key_start, len(row.keys),
                row.container, row.code))

    for name in names:
        definition = definitions[name]
        rows, inlined = built[name]
        gvk_rows = [(g["group"], g["version"], g["kind"], index[name])
                    for g in definition.get("x-kubernetes-group-version-kind", [])]
        flags = TYPE_ATOMIC if definition.get("x-kubernetes-map-type") == "atomic" else 0
        add_type(name, SPECIAL.get(name, OBJECT), flags,
                 descriptions.add(definition.get("description", "")), rows, inlined, gvk_rows)
    for name in hidden:
        rows = [r._replace(description="") for r in inline_types[name]]
        rows.sort(key=lambda r: r.name.encode())
        add_type(name, OBJECT, TYPE_INLINE, 0, rows, [], [])
    descriptions.flush()

    def gvk_bytes(row):
        return struct.pack("<IIIHxx", *(pool.add(s) for s in row[:3]), row[3])

    listed = [gvk_bytes(g) for g in gvks]
    # Sorted for look-up: (group, version, kind) -> place in the list above.
    order = sorted(range(len(gvks)), key=lambda i: tuple(s.encode() for s in gvks[i][:3]))
    assert len({g[:3] for g in gvks}) == len(gvks)
    blocks, compressed = [], bytearray()
    for raw_len, data in descriptions.blocks:
        blocks.append(struct.pack("<III", len(compressed), len(data), raw_len))
        compressed += data
    sections = [
        b"".join(types), b"".join(fields), b"".join(listed),
        b"".join(struct.pack("<H", i) for i in order), b"".join(inlines), b"".join(keys),
        b"".join(struct.pack("<HHH", b, o, n) for b, o, n in descriptions.places),
        b"".join(blocks), bytes(pool.bytes), bytes(compressed),
    ]
    assert len(fields) < 0xFFFF and len(descriptions.places) < 0xFFFF and len(keys) < 0xFFFF
    head_len = 8 + 8 + 4 + 8 * len(sections)
    head, at = b"", head_len
    for section in sections:
        head += struct.pack("<II", at, len(section))
        at += len(section)
    body = b"".join(sections)
    digest = hashlib.sha256(head + body).digest()[:8]
    counts = struct.pack("<I", len(names))
    print(f"{len(names)} types, {len(hidden)} inlined messages, {len(fields)} fields, "
          f"{len(gvks)} kinds; bytes: table {sum(map(len, sections[:-1]))}, "
          f"descriptions {len(compressed)} (raw {sum(r for r, _ in descriptions.blocks)})")
    return b"PNSCHEMA" + digest + counts + head + body


def main():
    definitions_path, k8s_pb_source, output = sys.argv[1:]
    with open(definitions_path) as file:
        definitions = json.load(file)["$defs"]
    messages = Messages(k8s_pb_source)
    names = closure(definitions)
    inline_types, notes, built = {}, [], {}
    for name in names:
        built[name] = ([], []) if name in SPECIAL else build_fields(
            definitions, messages, name, names, inline_types, notes)
    for note in notes:
        print(note)
    for unused in go_types.unused():
        sys.exit(f"go_types.py names a field that does not exist: {unused}")
    data = write(names, definitions, built, inline_types)
    with open(output, "wb") as file:
        file.write(data)
    print(f"{output}: {len(data)} bytes")


if __name__ == "__main__":
    main()
