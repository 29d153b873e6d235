"""What Go's types say about zero values, which neither input of generate.py carries.

In the protobuf encoding of Kubernetes a field that is not a pointer in Go is always
written, so `""`, `0` and `false` on the wire mean "not set" for it; for a pointer they
mean what they say. The definitions do not tell the two apart. The lists below do, for
the fields where it matters; they were written from the API reference and are checked
only for naming fields that exist. A number or boolean that is in no list is kept, which
at worst stores a zero that says nothing.
"""

# Type -> optional string fields that are pointers: "" is a value.
POINTER_STRINGS = {
    "AppArmorProfile": "localhostProfile",
    "AzureDiskVolumeSource": "cachingMode fsType kind",
    "AzureFilePersistentVolumeSource": "secretNamespace",
    "CSIVolumeSource": "fsType",
    "ClusterTrustBundleProjection": "name signerName",
    "CustomResourceDefinitionVersion": "deprecationWarning",
    "CustomResourceSubresourceScale": "labelSelectorPath",
    "DeleteOptions": "propagationPolicy",
    "Endpoint": "hostname nodeName zone",
    "EndpointAddress": "nodeName",
    "EndpointPort": "appProtocol name protocol",
    "GRPCAction": "service",
    "HostPathVolumeSource": "type",
    "ISCSIPersistentVolumeSource": "initiatorName",
    "ISCSIVolumeSource": "initiatorName",
    "IngressClassParametersReference": "apiGroup namespace scope",
    "IngressSpec": "ingressClassName",
    "JSONSchemaProps": "$ref x-kubernetes-list-type x-kubernetes-map-type",
    "LeaseSpec": "holderIdentity preferredHolder strategy",
    "LocalVolumeSource": "fsType",
    "NetworkPolicyPort": "protocol",
    "PersistentVolumeClaimSpec": "storageClassName volumeAttributesClassName volumeMode",
    "PersistentVolumeClaimStatus": "currentVolumeAttributesClassName",
    "PersistentVolumeSpec": "volumeAttributesClassName volumeMode",
    "PodDNSConfigOption": "value",
    "PodResourceClaim": "resourceClaimName resourceClaimTemplateName",
    "PodSpec": "hostnameOverride preemptionPolicy runtimeClassName",
    "PodSecurityContext": "fsGroupChangePolicy seLinuxChangePolicy supplementalGroupsPolicy",
    "Preconditions": "resourceVersion uid",
    "PriorityClass": "preemptionPolicy",
    "SeccompProfile": "localhostProfile",
    "SecurityContext": "procMount",
    "ServiceReference": "path",
    "ServicePort": "appProtocol",
    "ServiceSpec": "internalTrafficPolicy ipFamilyPolicy loadBalancerClass trafficDistribution",
    "StorageClass": "reclaimPolicy volumeBindingMode",
    "TypedLocalObjectReference": "apiGroup",
    "TypedObjectReference": "apiGroup namespace",
    "VolumeAttachmentSource": "persistentVolumeName",
    "VolumeMount": "mountPropagation recursiveReadOnly",
    "WebhookClientConfig": "url",
    "WindowsSecurityContextOptions": "gmsaCredentialSpec gmsaCredentialSpecName runAsUserName",
}

# Type -> optional numbers and booleans that are no pointers: zero says nothing.
PLAIN_ZEROS = {
    "AWSElasticBlockStoreVolumeSource": "partition readOnly",
    "AzureFilePersistentVolumeSource": "readOnly",
    "AzureFileVolumeSource": "readOnly",
    "CSIPersistentVolumeSource": "readOnly",
    "CephFSPersistentVolumeSource": "readOnly",
    "CephFSVolumeSource": "readOnly",
    "CinderPersistentVolumeSource": "readOnly",
    "CinderVolumeSource": "readOnly",
    "Condition": "observedGeneration",
    "Container": "stdin stdinOnce tty",
    "ContainerImage": "sizeBytes",
    "ContainerPort": "hostPort",
    "ContainerStateTerminated": "signal",
    "CustomResourceColumnDefinition": "priority",
    "CustomResourceDefinitionSpec": "preserveUnknownFields",
    "CustomResourceDefinitionVersion": "deprecated",
    "DaemonSetSpec": "minReadySeconds",
    "DaemonSetStatus": "numberAvailable numberUnavailable observedGeneration"
                       " updatedNumberScheduled",
    "DeploymentSpec": "minReadySeconds paused",
    "DeploymentStatus": "availableReplicas observedGeneration readyReplicas replicas"
                        " unavailableReplicas updatedReplicas",
    "EphemeralContainer": "stdin stdinOnce tty",
    "Event": "count deprecatedCount",
    "EventSeries": "count",
    "FCVolumeSource": "readOnly",
    "FlexPersistentVolumeSource": "readOnly",
    "FlexVolumeSource": "readOnly",
    "GCEPersistentDiskVolumeSource": "partition readOnly",
    "GlusterfsVolumeSource": "readOnly",
    "ISCSIPersistentVolumeSource": "chapAuthDiscovery chapAuthSession readOnly",
    "ISCSIVolumeSource": "chapAuthDiscovery chapAuthSession readOnly",
    "JSONSchemaProps": "exclusiveMaximum exclusiveMinimum nullable uniqueItems"
                       " x-kubernetes-embedded-resource x-kubernetes-int-or-string",
    "JobStatus": "active failed succeeded",
    "NFSVolumeSource": "readOnly",
    "NodeSpec": "unschedulable",
    "ObjectMeta": "generation",
    "PersistentVolumeClaimVolumeSource": "readOnly",
    "PodCondition": "observedGeneration",
    "PodDisruptionBudgetStatus": "observedGeneration",
    "PodSpec": "hostIPC hostNetwork hostPID",
    "PodStatus": "observedGeneration",
    "PortworxVolumeSource": "readOnly",
    "PriorityClass": "globalDefault",
    "Probe": "failureThreshold initialDelaySeconds periodSeconds successThreshold"
             " timeoutSeconds",
    "QuobyteVolumeSource": "readOnly",
    "RBDPersistentVolumeSource": "readOnly",
    "RBDVolumeSource": "readOnly",
    "ReplicaSetSpec": "minReadySeconds",
    "ReplicaSetStatus": "availableReplicas fullyLabeledReplicas observedGeneration readyReplicas",
    "ReplicationControllerSpec": "minReadySeconds",
    "ReplicationControllerStatus": "availableReplicas fullyLabeledReplicas observedGeneration"
                                   " readyReplicas",
    "ScaleIOPersistentVolumeSource": "readOnly sslEnabled",
    "ScaleIOVolumeSource": "readOnly sslEnabled",
    "ServiceBackendPort": "number",
    "ServicePort": "nodePort",
    "ServiceSpec": "healthCheckNodePort publishNotReadyAddresses",
    "StatefulSetSpec": "minReadySeconds",
    "StatefulSetStatus": "availableReplicas currentReplicas observedGeneration readyReplicas"
                         " updatedReplicas",
    "Status": "code",
    "StatusDetails": "retryAfterSeconds",
    "StorageOSPersistentVolumeSource": "readOnly",
    "StorageOSVolumeSource": "readOnly",
    "SubjectAccessReviewStatus": "denied",
    "TokenReviewStatus": "authenticated",
    "VolumeMount": "readOnly",
}

# Defaults that matter to the identity of a list element: server-side apply fills them in
# before it compares the keys of two elements.
DEFAULTS = {
    ("ContainerPort", "protocol"): "TCP",
    ("ServicePort", "protocol"): "TCP",
}

_POINTERS = {(t, f) for t, names in POINTER_STRINGS.items() for f in names.split()}
_PLAIN = {(t, f) for t, names in PLAIN_ZEROS.items() for f in names.split()}
_seen = set()


def keeps_zero(type_name, field, is_string):
    """Whether a zero value on the wire was set by the sender."""
    _seen.add((type_name, field))
    if is_string:
        return (type_name, field) in _POINTERS
    return (type_name, field) not in _PLAIN


def unused():
    """Entries above that name no field of the definitions."""
    return sorted((_POINTERS | _PLAIN | set(DEFAULTS)) - _seen)
