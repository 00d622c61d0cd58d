//! Fills in the defaults that the schema declares, wherever an object on the way exists.
//! Source: apiextensions-apiserver `pkg/apiserver/schema/defaulting/algorithm.go`.

use super::{Schema, Shape};
use crate::meta::Value;

pub fn default(value: &mut Value, schema: &Schema) {
    match (&schema.shape, value) {
        (Shape::Object(shape), Value::Object(map)) => {
            for field in &shape.fields {
                // Go does not tell the zero value of a field that is no pointer from its absence.
                let own = field.default.as_deref().or(field.implied.as_deref()).filter(|it| field.is_pointer || field.keeps_zero || !is_zero(it));
                let declared = own.or(field.schema.default.as_ref());
                let is_there = map.get(&field.name).is_some_and(|it| own.is_none() || (field.is_pointer && !it.is_null()) || !is_zero(it));
                if let (Some(default), false) = (declared, is_there) {
                    map.insert(field.name.clone(), default.clone());
                }
                if let Some(value) = map.get_mut(&field.name) {
                    self::default(value, &field.schema);
                }
            }
        }
        (Shape::List { items, .. }, Value::Array(list)) => list.iter_mut().for_each(|item| default(item, items)),
        (Shape::Map { values, .. }, Value::Object(map)) => map.values_mut().for_each(|value| default(value, values)),
        _ => (),
    }
}

fn is_zero(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false)) || *value == "" || *value == 0 || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn declared_defaults_fill_what_is_absent() {
        let cases = [
            ("core.v1.Service", json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}}), json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}], "type": "ClusterIP", "sessionAffinity": "None"}})),
            // Go tells what is empty from what is absent by pointers.
            ("discovery.v1.EndpointSlice", json!({"ports": [{"port": 80, "protocol": ""}]}), json!({"ports": [{"port": 80, "protocol": "", "name": ""}]})),
            ("storage.v1.CSIDriver", json!({"spec": {"attachRequired": false, "volumeLifecycleModes": []}}), json!({"spec": {"attachRequired": false, "podInfoOnMount": false, "storageCapacity": false,
                "fsGroupPolicy": "ReadWriteOnceWithFSType", "requiresRepublish": false, "seLinuxMount": false, "volumeLifecycleModes": ["Persistent"]}})),
        ];
        for (name, mut object, expected) in cases {
            default(&mut object, &crate::schema::builtin(&format!("io.k8s.api.{name}")).expect("a type"));
            assert_eq!(object, expected, "{name}");
        }
    }
}
