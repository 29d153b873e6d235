//! What `kubectl` users do, command by command, and what they must see.
//!
//! Data only: a list of commands to run one after the other against one
//! cluster, each with its exit code and texts that its output must hold. The
//! API server's own tests run it against the API alone, the end-to-end tests
//! against a whole master. It does not know how `kubectl` is found or started.

/// One command and what it must answer.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Arguments of `kubectl`, without `--kubeconfig`.
    pub args: &'static [&'static str],
    /// What it reads, for `-f -`.
    pub stdin: &'static str,
    /// Variables of its environment.
    pub env: &'static [(&'static str, &'static str)],
    /// How it must end.
    pub code: i32,
    /// What standard output must hold.
    pub stdout: &'static [&'static str],
    /// What standard error must hold.
    pub stderr: &'static [&'static str],
}

const fn case(args: &'static [&'static str], stdout: &'static [&'static str]) -> Case {
    Case { args, stdin: "", env: &[], code: 0, stdout, stderr: &[] }
}

impl Case {
    const fn reads(self, stdin: &'static str) -> Self {
        Self { stdin, ..self }
    }

    const fn with(self, env: &'static [(&'static str, &'static str)]) -> Self {
        Self { env, ..self }
    }

    const fn fails(self, code: i32, stderr: &'static [&'static str]) -> Self {
        Self { code, stderr, ..self }
    }

    const fn warns(self, stderr: &'static [&'static str]) -> Self {
        Self { stderr, ..self }
    }
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: server
        image: registry.example.com/web:1
        ports: [{containerPort: 80}]
        env: [{name: COLOR, value: red}]
"#;

const WEB_2: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web, tier: front}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: server
        image: registry.example.com/web:2
        ports: [{containerPort: 80}, {containerPort: 443}]
"#;

const TYPO: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: typo}
spec:
  replicaz: 1
  selector: {matchLabels: {app: typo}}
  template:
    metadata: {labels: {app: typo}}
    spec: {containers: [{name: c, image: "a:1"}]}
"#;

const INVALID: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: invalid}
spec: {containers: [{name: "Not_Valid"}]}
"#;

const CONF: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {a: '1', b: '2'}\n";
const CONF_2: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {a: '1'}\n";
const CONF_3: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {a: '3'}\n";

const NODE: &str = r#"
apiVersion: v1
kind: Node
metadata:
  name: matrix-node
  labels: {node-role.kubernetes.io/edge: "", kubernetes.io/arch: arm64}
status:
  capacity: {cpu: "4", memory: 1Gi, pods: "110"}
"#;

/// A pod that no node takes, so that it stays as it is.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: solo, labels: {app: solo}}
spec:
  nodeSelector: {example.com/nowhere: "true"}
  containers: [{name: main, image: "registry.example.com/solo:1"}]
"#;

/// Commands that need no node and no controller, in order; they leave nothing behind.
pub const CASES: &[Case] = &[
    // What is there.
    case(&["version"], &["Client Version: v1.3", "Server Version: v1.35.0+pinnace"]),
    case(&["api-versions"], &["v1\n", "apps/v1", "coordination.k8s.io/v1"]),
    case(
        &["api-resources"],
        &[
            "pods                       po",
            "deployments                deploy",
            "true         Lease",
        ],
    ),
    case(&["api-resources", "--namespaced=false", "-o", "name"], &["namespaces\n", "nodes\n"]),
    case(&["get", "--raw", "/readyz?verbose"], &["[+]ping ok", "readyz check passed"]),
    case(&["get", "namespaces"], &["NAME", "STATUS", "AGE", "default", "kube-system", "Active"]),
    case(&["auth", "whoami"], &["Username", "system:masters"]),
    case(&["auth", "can-i", "delete", "nodes"], &["yes"]),
    case(&["auth", "can-i", "--list"], &["*.*", "[*]"]),
    case(
        &["explain", "deployment.spec.strategy"],
        &["GROUP:      apps", "FIELD: strategy", "RollingUpdate"],
    ),
    case(&["explain", "pod", "--recursive"], &["containers\t<[]Container>", "imagePullPolicy"]),
    // Creating.
    case(&["create", "namespace", "matrix"], &["namespace/matrix created"]),
    case(&["create", "namespace", "matrix"], &[])
        .fails(1, &["Error from server (AlreadyExists): namespaces \"matrix\" already exists"]),
    case(&["config", "set-context", "--current", "--namespace=matrix"], &["modified"]),
    case(
        &["create", "configmap", "literal", "--from-literal=a=1", "--from-literal=b=2"],
        &["configmap/literal created"],
    ),
    case(
        &["create", "secret", "generic", "hidden", "--from-literal=password=open-sesame"],
        &["secret/hidden created"],
    ),
    case(&["create", "serviceaccount", "robot"], &["serviceaccount/robot created"]),
    case(
        &["create", "deployment", "quick", "--image=registry.example.com/quick:1", "--replicas=0"],
        &["deployment.apps/quick created"],
    ),
    case(&["create", "-f", "-"], &[])
        .reads(TYPO)
        .fails(1, &["strict decoding error: unknown field \"spec.replicaz\""]),
    case(&["create", "--validate=warn", "-f", "-"], &["deployment.apps/typo created"])
        .reads(TYPO)
        .warns(&["Warning: unknown field \"spec.replicaz\""]),
    case(&["create", "-f", "-"], &[]).reads(INVALID).fails(
        1,
        &[
            "The Pod \"invalid\" is invalid",
            "spec.containers[0].image: Required value",
            "spec.containers[0].name",
        ],
    ),
    case(&["create", "-n", "nowhere", "configmap", "x"], &[])
        .fails(1, &["namespaces \"nowhere\" not found"]),
    case(&["create", "configmap", "dry", "--dry-run=server", "-o", "name"], &["configmap/dry"]),
    case(&["get", "configmap", "dry"], &[])
        .fails(1, &["Error from server (NotFound): configmaps \"dry\" not found"]),
    // Applying on the client.
    case(&["apply", "-f", "-"], &["deployment.apps/web created"]).reads(WEB),
    case(&["apply", "-f", "-"], &["deployment.apps/web unchanged"]).reads(WEB),
    case(&["diff", "-f", "-"], &["+      - image: registry.example.com/web:2", "-      - env:"])
        .reads(WEB_2)
        .fails(1, &[]),
    case(&["apply", "--dry-run=server", "-f", "-"], &["configured (server dry run)"]).reads(WEB_2),
    case(&["apply", "-f", "-"], &["deployment.apps/web configured"]).reads(WEB_2),
    case(&["diff", "-f", "-"], &[]).reads(WEB_2),
    case(
        &["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0]}"],
        &["web:2", "\"containerPort\":443"],
    ),
    // Applying on the server.
    case(&["apply", "--server-side", "-f", "-"], &["configmap/conf serverside-applied"])
        .reads(CONF),
    case(&["apply", "--server-side", "-f", "-"], &["configmap/conf serverside-applied"])
        .reads(CONF_2),
    case(&["get", "configmap", "conf", "-o", "jsonpath={.data}"], &["{\"a\":\"1\"}"]),
    case(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &[])
        .reads(CONF_3)
        .fails(1, &["conflict with \"kubectl\"", ".data.a"]),
    case(
        &["apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-"],
        &["configmap/conf serverside-applied"],
    )
    .reads(CONF_3),
    case(
        &["get", "configmap", "conf", "-o", "yaml", "--show-managed-fields"],
        &["manager: other", "operation: Apply", "f:data"],
    ),
    // Looking.
    case(
        &["get", "deployments"],
        &["NAME    READY   UP-TO-DATE   AVAILABLE   AGE", "web     0/0     0"],
    ),
    case(
        &["get", "deployments", "-o", "wide"],
        &["CONTAINERS", "IMAGES", "SELECTOR", "server", "registry.example.com/web:2", "app=web"],
    ),
    case(&["get", "deploy/web", "-o", "name"], &["deployment.apps/web"]),
    case(&["get", "deploy", "web", "-o", "json"], &["\"kind\": \"Deployment\"", "\"uid\": "]),
    case(&["get", "deploy", "web", "-o", "yaml"], &["maxSurge: 25%", "revisionHistoryLimit: 10"]),
    case(
        &["get", "deploy", "-o", "custom-columns=N:.metadata.name,R:.spec.replicas"],
        &["N       R", "web     0"],
    ),
    case(
        &["get", "deploy", "-o", "go-template={{range .items}}{{.metadata.name}} {{end}}"],
        &["quick typo web"],
    ),
    case(&["get", "deploy", "--sort-by=.metadata.creationTimestamp", "--no-headers"], &["quick"]),
    case(
        &["get", "deploy", "-l", "app=web,tier in (front)", "--show-labels"],
        &["app=web,tier=front"],
    ),
    case(&["get", "deploy", "-l", "app=none"], &[])
        .warns(&["No resources found in matrix namespace."]),
    case(&["get", "deploy", "--chunk-size=1", "-A", "--no-headers"], &["quick", "typo", "web"]),
    case(&["get", "configmap", "--field-selector=metadata.name=conf"], &["conf", "DATA"]),
    case(&["get", "secret", "hidden"], &["NAME", "TYPE", "DATA", "Opaque", "1"]),
    case(&["get", "serviceaccounts"], &["SECRETS", "default", "robot"]),
    case(&["get", "all"], &["deployment.apps/web"]),
    case(&["get", "configmap,secret"], &["configmap/conf", "secret/hidden"]),
    case(&["get", "nonsense"], &[])
        .fails(1, &["the server doesn't have a resource type \"nonsense\""]),
    case(
        &["describe", "deployment", "web"],
        &["Name:                   web", "StrategyType:           RollingUpdate", "server:"],
    ),
    case(&["describe", "configmap", "conf"], &["Name:         conf", "a:\n----\n3"]),
    case(&["describe", "secret", "hidden"], &["Type:  Opaque", "password:  11 bytes"]),
    case(&["describe", "namespace", "matrix"], &["Status:       Active"]),
    // Changing.
    case(&["label", "configmap", "conf", "color=red"], &["configmap/conf labeled"]),
    case(&["label", "configmap", "conf", "color=blue"], &[]).fails(1, &["--overwrite is false"]),
    case(&["label", "configmap", "conf", "color=blue", "--overwrite"], &["labeled"]),
    case(&["label", "configmap", "conf", "color-"], &["configmap/conf unlabeled"]),
    case(&["annotate", "configmap", "conf", "example.com/note=hi"], &["configmap/conf annotated"]),
    case(
        &["patch", "configmap", "conf", "--type=merge", "-p", "{\"data\":{\"m\":\"1\"}}"],
        &["patched"],
    ),
    case(
        &[
            "patch",
            "configmap",
            "conf",
            "--type=json",
            "-p",
            "[{\"op\":\"remove\",\"path\":\"/data/m\"}]",
        ],
        &["patched"],
    ),
    case(
        &[
            "patch",
            "configmap",
            "conf",
            "--type=json",
            "-p",
            "[{\"op\":\"remove\",\"path\":\"/data/none\"}]",
        ],
        &[],
    )
    .fails(1, &["the server rejected our request due to an error in our request"]),
    case(
        &[
            "patch",
            "deployment",
            "web",
            "-p",
            "{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"server\",\"image\":\"registry.example.com/web:3\"}]}}}}",
        ],
        &["deployment.apps/web patched"],
    ),
    case(
        &["set", "image", "deployment/web", "server=registry.example.com/web:4"],
        &["image updated"],
    ),
    case(&["set", "env", "deployment/web", "COLOR=green"], &["env updated"]),
    case(&["scale", "deployment/quick", "--replicas=1", "--current-replicas=5"], &[])
        .fails(1, &["Expected replicas to be 5, was 0"]),
    case(&["scale", "deployment/typo", "--replicas=0"], &["deployment.apps/typo scaled"]),
    case(
        &["get", "deployment", "typo", "-o", "jsonpath=replicas={.spec.replicas}"],
        &["replicas=0"],
    ),
    case(&["rollout", "restart", "deployment/web"], &["deployment.apps/web restarted"]),
    case(&["rollout", "pause", "deployment/web"], &["deployment.apps/web paused"]),
    case(&["rollout", "resume", "deployment/web"], &["deployment.apps/web resumed"]),
    case(&["edit", "configmap", "conf"], &["configmap/conf edited"])
        .with(&[("KUBE_EDITOR", "sed -i s/note:.hi/note:\\ edited/")]),
    case(&["get", "configmap", "conf", "-o", "jsonpath={.metadata.annotations}"], &["edited"]),
    case(&["edit", "configmap", "conf"], &[])
        .warns(&["Edit cancelled, no changes made"])
        .with(&[("KUBE_EDITOR", "true")]),
    case(&["replace", "-f", "-"], &["configmap/conf replaced"]).reads(CONF_2),
    // Nodes.
    case(&["apply", "-f", "-"], &["node/matrix-node created"]).reads(NODE),
    case(&["get", "node", "matrix-node"], &["NAME", "STATUS", "ROLES", "VERSION", "edge"]),
    case(
        &["get", "node", "matrix-node", "-o", "wide"],
        &["INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"],
    ),
    case(&["cordon", "matrix-node"], &["node/matrix-node cordoned"]),
    case(&["get", "node", "matrix-node"], &["SchedulingDisabled"]),
    case(&["uncordon", "matrix-node"], &["node/matrix-node uncordoned"]),
    case(
        &["taint", "node", "matrix-node", "example.com/a=b:NoSchedule"],
        &["node/matrix-node tainted"],
    ),
    case(
        &["describe", "node", "matrix-node"],
        &["Roles:              edge", "example.com/a=b:NoSchedule", "memory:  1Gi"],
    ),
    case(&["delete", "node", "matrix-node"], &["node \"matrix-node\" deleted"]),
    // Pods without a node.
    case(&["apply", "-f", "-"], &["pod/solo created"]).reads(POD),
    case(
        &["get", "pod", "solo", "-o", "wide"],
        &["READY", "RESTARTS", "NOMINATED NODE", "READINESS GATES", "0/1", "Pending", "<none>"],
    ),
    case(&["get", "pods", "--field-selector=status.phase=Pending,spec.nodeName="], &["solo"]),
    case(
        &["describe", "pod", "solo"],
        &["Status:           Pending", "Node-Selectors:  ", "example.com/nowhere=true"],
    ),
    case(&["logs", "solo"], &[]).fails(1, &["pod solo does not have a host assigned"]),
    case(&["logs", "missing"], &[]).fails(1, &["pods \"missing\" not found"]),
    case(
        &[
            "patch",
            "pod",
            "solo",
            "-p",
            "{\"spec\":{\"containers\":[{\"name\":\"main\",\"image\":\"x:2\"}]}}",
        ],
        &["pod/solo patched"],
    ),
    case(&["patch", "pod", "solo", "-p", "{\"spec\":{\"restartPolicy\":\"Never\"}}"], &[])
        .fails(1, &["The Pod \"solo\" is invalid", "pod updates may not change fields"]),
    case(
        &["wait", "pod/solo", "--for=jsonpath={.status.phase}=Pending", "--timeout=10s"],
        &["condition met"],
    ),
    case(&["wait", "pod/solo", "--for=condition=Ready", "--timeout=1s"], &[])
        .fails(1, &["timed out"]),
    case(&["events"], &[]),
    case(&["delete", "pod", "solo", "--timeout=20s"], &["pod \"solo\" deleted"]),
    case(&["wait", "pod/solo", "--for=delete", "--timeout=10s"], &[]),
    // Deleting.
    case(&["delete", "configmap", "missing"], &[]).fails(1, &["configmaps \"missing\" not found"]),
    case(&["delete", "configmap", "missing", "--ignore-not-found"], &[]),
    case(
        &["delete", "configmap", "conf", "--dry-run=server"],
        &["configmap \"conf\" deleted from matrix namespace (server dry run)"],
    ),
    case(
        &["delete", "configmap", "conf", "literal"],
        &["configmap \"conf\" deleted", "configmap \"literal\" deleted"],
    ),
    case(&["delete", "secret", "--all"], &["secret \"hidden\" deleted"]),
    case(
        &["delete", "deployment", "-l", "app=web", "--timeout=20s"],
        &["deployment.apps \"web\" deleted"],
    ),
    case(
        &["delete", "deployment", "quick", "typo", "--cascade=background"],
        &["\"quick\" deleted", "\"typo\" deleted"],
    ),
    case(&["delete", "namespace", "default"], &[]).fails(1, &["this namespace may not be deleted"]),
    case(&["delete", "serviceaccount", "robot"], &["serviceaccount \"robot\" deleted"]),
    case(&["config", "set-context", "--current", "--namespace=default"], &["modified"]),
    case(&["delete", "namespace", "matrix", "--wait=false"], &["namespace \"matrix\" deleted"]),
];
