/*
 * The Helm chart. test/packaging/render renders it with the libraries that Helm has, since Debian has no Helm. TypeScript
 * compares the manifests with the API of Kubernetes, and `tsbouncer --check` reads the config.
 */

import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';
import { parse, parseAllDocuments } from 'yaml';
import { noProgram, run, tempDir } from '../harness';
import { before, describe, it, runSync } from '../harness/limits';
import { PROJECT_DIR } from '../harness/machine';
import { itUnless } from '../harness/needs';

// biome-ignore lint/suspicious/noExplicitAny: manifests of every kind; their types are what these tests check
type Manifest = any;

const CHART = join(PROJECT_DIR, 'packaging', 'helm', 'tsbouncer');
const MAIN_JS = join(PROJECT_DIR, 'dist', 'main.js');
const GO_PATH = '/usr/share/gocode';
const GO_PACKAGES = ['github.com/Masterminds/sprig', 'github.com/xeipuuv/gojsonschema', 'sigs.k8s.io/yaml'];
const absent = GO_PACKAGES.find((name) => !existsSync(join(GO_PATH, 'src', name)));
const missing = noProgram('go') ?? (absent === undefined ? null : `there is no Go package ${absent} on this machine`);
const GO_MS_MAX = 110_000;

const chartIt = itUnless(missing);
/** The part of the API that has the kinds of the chart. ServiceMonitor is not one of Kubernetes itself. */
const API: Record<string, string> = {
  ConfigMap: 'core/v1',
  Secret: 'core/v1',
  Service: 'core/v1',
  Deployment: 'apps/v1',
  PodDisruptionBudget: 'policy/v1',
};

const ALL_OPTIONS = {
  replicaCount: 3,
  image: { repository: 'registry.example.net/tsbouncer', tag: '1.2.3-small', pullPolicy: 'Always' },
  imagePullSecrets: [{ name: 'pull' }],
  databases: { '*': null, app: 'host=db1,db2 port=5432 dbname=app', other: 'host=db3' },
  settings: { pool_mode: 'session', max_client_conn: 1_000_000, so_reuseport: true, query_timeout: '1.5' },
  users: { app: 'pool_mode=transaction max_user_connections=50' },
  auth: {
    type: 'hba',
    users: { app: 'se"cret', 'two words': 'SCRAM-SHA-256$4096:x$y:z' },
    hba: 'host all all all md5',
  },
  tls: { existingSecret: 'certificate', sslmode: 'verify-full' },
  service: { type: 'LoadBalancer', port: 6432, annotations: { 'example.net/internal': 'true' } },
  drain: { preStopSeconds: 10, timeout: 300, rate: 50 },
  podDisruptionBudget: { enabled: true, maxUnavailable: 2 },
  metrics: { serviceMonitor: { enabled: true, interval: '15s', labels: { release: 'prometheus' } } },
  resources: { limits: { memory: '512Mi' } },
  podAnnotations: { 'example.net/team': 'data' },
  podLabels: { team: 'data' },
  serviceAccountName: 'pooler',
  priorityClassName: 'high',
  nodeSelector: { disk: 'ssd' },
  tolerations: [{ key: 'dedicated', operator: 'Exists' }],
  affinity: { nodeAffinity: {} },
  topologySpreadConstraints: [
    { maxSkew: 1, topologyKey: 'topology.kubernetes.io/zone', whenUnsatisfiable: 'DoNotSchedule' },
  ],
};

describe('the Helm chart', () => {
  const dir = tempDir('chart');
  const renderer = join(dir, 'render');

  before(async () => {
    if (missing !== null) return;
    const env = { GOCACHE: join(dir, 'cache'), ...process.env, GO111MODULE: 'off', GOPATH: GO_PATH };
    const cwd = join(PROJECT_DIR, 'test', 'packaging', 'render');
    const built = await run('go', ['build', '-o', renderer, '.'], { cwd, env, asSelf: true, timeoutMs: GO_MS_MAX });
    assert.equal(built.code, 0, built.stderr);
  });

  function render(values: object): { status: number | null; stdout: string; stderr: string } {
    const file = join(dir, 'values.json');
    writeFileSync(file, JSON.stringify(values));
    return runSync(renderer, [CHART, file]);
  }

  function manifests(values: object): Manifest[] {
    const { status, stdout, stderr } = render(values);
    assert.equal(status, 0, stderr);
    // Kubernetes reads YAML 1.1, where 0440 is octal
    const documents = parseAllDocuments(stdout, { version: '1.1' });
    for (const document of documents) assert.deepEqual(document.errors, []);
    return documents.map((document) => document.toJS()).filter((manifest) => manifest !== null);
  }

  function find(all: Manifest[], kind: string, ending = ''): Manifest {
    const name = `pool-tsbouncer${ending}`;
    return all.find((m) => m.kind === kind && m.metadata.name === name) ?? assert.fail(`no ${kind} ${name}`);
  }

  /** Has the config of the manifests read by the pooler. */
  async function check(all: Manifest[], more: Record<string, string> = {}): Promise<string> {
    const place = tempDir('config');
    const files: Record<string, string> = { ...find(all, 'ConfigMap').data, ...more };
    const userlist = find(all, 'Secret', '-userlist').data['userlist.txt'];
    files['userlist.txt'] = Buffer.from(userlist, 'base64').toString('latin1');
    for (const [name, text] of Object.entries(files)) {
      writeFileSync(join(place, name), text.replace(/\/etc\/pgbouncer(-tls)?\//g, `${place}/`));
    }
    const checked = await run(process.execPath, [MAIN_JS, '--check', join(place, 'pgbouncer.ini')]);
    assert.equal(checked.code, 0, checked.stdout + checked.stderr);
    return files['pgbouncer.ini'] as string;
  }

  it('has the version of the package', () => {
    const { version } = JSON.parse(readFileSync(join(PROJECT_DIR, 'package.json'), 'utf8'));
    const chart = parse(readFileSync(join(CHART, 'Chart.yaml'), 'utf8'));
    assert.deepEqual([chart.version, chart.appVersion], [version, version]);
  });

  chartIt('describes replicas behind a Service, with the default values', async () => {
    const all = manifests({});
    const ini = await check(all);
    assert.deepEqual(
      all.map((m) => m.kind),
      ['ConfigMap', 'Secret', 'Deployment', 'PodDisruptionBudget', 'Service', 'Service'],
    );
    const { spec } = find(all, 'Deployment');
    assert.equal(spec.replicas, 2);
    for (const other of [find(all, 'Service'), find(all, 'Service', '-replicas')]) {
      const { labels } = spec.template.metadata;
      for (const [key, value] of Object.entries(other.spec.selector)) assert.equal(labels[key], value, key);
      const ports = spec.template.spec.containers[0].ports.map((port: Manifest) => port.name);
      for (const port of other.spec.ports) assert.ok(ports.includes(port.targetPort), port.targetPort);
    }
    assert.deepEqual(find(all, 'PodDisruptionBudget').spec.selector, spec.selector);
    const { metadata, spec: replicas } = find(all, 'Service', '-replicas');
    assert.equal(replicas.clusterIP, 'None');
    // a cancel request reaches any replica, which finds the right one by this name
    assert.match(ini, new RegExp(`^peers_dns = ${metadata.name}\\.data\\.svc$`, 'm'));
    assert.equal(replicas.publishNotReadyAddresses, true);
  });

  chartIt('runs the image without rights, on a read-only file system', () => {
    const { spec } = find(manifests({}), 'Deployment').spec.template;
    const [container] = spec.containers;
    assert.deepEqual(container.securityContext, {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    });
    assert.equal(spec.securityContext.runAsNonRoot, true);
    assert.equal(spec.automountServiceAccountToken, false);
    // root and the group may read the secrets
    assert.equal(spec.volumes[0].projected.defaultMode, 0o440);
    assert.equal(container.command, undefined);
  });

  chartIt('asks the port that the config opens, and leaves a shutdown enough time', () => {
    for (const values of [{}, ALL_OPTIONS]) {
      const all = manifests(values);
      const ini = find(all, 'ConfigMap').data['pgbouncer.ini'] as string;
      const setting = (name: string): string => new RegExp(`^${name} = (.*)$`, 'm').exec(ini)?.[1] ?? assert.fail(name);
      const pod = find(all, 'Deployment').spec.template.spec;
      const [container] = pod.containers;
      const ports = Object.fromEntries(container.ports.map((p: Manifest) => [p.name, String(p.containerPort)]));
      assert.deepEqual(ports, { postgres: setting('listen_port'), metrics: setting('metrics_port') });
      assert.deepEqual(container.readinessProbe.httpGet, { path: '/readyz', port: 'metrics' });
      assert.deepEqual(container.livenessProbe.httpGet, { path: '/livez', port: 'metrics' });
      assert.equal(setting('sigterm_shutdown'), 'wait_for_transactions');
      // docs/operating.md: shutdown_timeout and 5 seconds
      const ends = container.lifecycle.preStop.sleep.seconds + Number(setting('shutdown_timeout')) + 5;
      assert.ok(pod.terminationGracePeriodSeconds > ends, `${pod.terminationGracePeriodSeconds} s`);
    }
  });

  chartIt('has all options at once', async () => {
    const all = manifests(ALL_OPTIONS);
    const [crt, key] = ['tls.crt', 'tls.key'];
    const request = [
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-subj',
      '/CN=a',
    ];
    const made = runSync('openssl', [...request, '-keyout', join(dir, key), '-out', join(dir, crt)]);
    assert.equal(made.status, 0, made.stderr);
    const certificate = readFileSync(join(dir, crt), 'utf8');
    const tls = { [crt]: certificate, [key]: readFileSync(join(dir, key), 'utf8'), 'ca.crt': certificate };
    const ini = await check(all, tls);
    assert.match(ini, /^max_client_conn = 1000000$/m);
    assert.match(ini, /^so_reuseport = 1$/m);
    assert.doesNotMatch(ini, /^\* =/m);
    const secret = Buffer.from(find(all, 'Secret', '-userlist').data['userlist.txt'], 'base64').toString();
    assert.equal(secret, '"app" "se""cret"\n"two words" "SCRAM-SHA-256$4096:x$y:z"\n');
    const { template } = find(all, 'Deployment').spec;
    assert.equal(template.spec.containers[0].image, 'registry.example.net/tsbouncer:1.2.3-small');
    assert.equal(template.metadata.labels.team, 'data');
    assert.equal(template.metadata.annotations['example.net/team'], 'data');
    const { spec } = find(all, 'ServiceMonitor');
    assert.deepEqual(spec.endpoints, [{ port: 'metrics', path: '/metrics', interval: '15s' }]);
    const { labels } = find(all, 'Service', '-replicas').metadata;
    const { labels: others } = find(all, 'Service').metadata;
    const isSelected = (found: Record<string, string>): boolean =>
      Object.entries(spec.selector.matchLabels).every(([name, value]) => found[name] === value);
    assert.deepEqual([isSelected(labels), isSelected(others)], [true, false]);
    // the value of that label is the name of the job, which an alert has
    const alerts = readFileSync(join(PROJECT_DIR, 'etc', 'grafana', 'tsbouncer-alerts.yml'), 'utf8');
    assert.equal(labels[spec.jobLabel], /up\{job="(\w+)"\}/.exec(alerts)?.[1]);
  });

  chartIt('starts new pods when the config, a user or a rule has changed', () => {
    const sums = [
      {},
      { settings: { pool_mode: 'session' } },
      { auth: { users: { app: 'x' } } },
      { auth: { users: { app: 'y' } } },
      { auth: { hba: 'local all all trust' } },
    ].map((values) => find(manifests(values), 'Deployment').spec.template.metadata.annotations['checksum/config']);
    assert.equal(new Set(sums).size, sums.length);
  });

  chartIt('keeps the rules as they are written, whatever spaces they begin with', () => {
    for (const hba of [
      '  host all bob all reject\nhost all all all md5\n',
      '\n\n   # rules\n host all all all md5\n',
    ]) {
      const { data } = find(manifests({ auth: { type: 'hba', hba } }), 'ConfigMap');
      assert.equal(data['pg_hba.conf'], hba);
    }
  });

  chartIt('has a config that starts for methods of login that need other values too', async () => {
    const ldap = 'ldapserver=ldap.example.net ldapprefix="uid=" ldapsuffix=",dc=example"';
    const ini = await check(manifests({ auth: { type: 'ldap' }, settings: { auth_ldap_options: ldap } }));
    assert.match(ini, /^auth_type = ldap$/m);
    await check(manifests({ auth: { type: 'any' }, databases: { '*': null, app: 'host=db user=app' } }));
  });

  chartIt('says that no user can log in only if the userlist decides', () => {
    const notes = (auth: object): boolean =>
      / userlist is empty/.test(render({ auth, settings: { auth_ldap_options: 'x' } }).stdout);
    assert.deepEqual([{}, { type: 'ldap' }, { users: { app: 'x' } }].map(notes), [true, false, false]);
  });

  chartIt('uses a Secret that exists, and then makes none', () => {
    const all = manifests({ auth: { existingSecret: 'mine' } });
    assert.deepEqual(
      all.filter((m) => m.kind === 'Secret'),
      [],
    );
    const { volumes } = find(all, 'Deployment').spec.template.spec;
    assert.equal(volumes[0].projected.sources[1].secret.name, 'mine');
  });

  chartIt('fits the API of Kubernetes', () => {
    const all = [{}, ALL_OPTIONS, { auth: { existingSecret: 'mine' }, drain: { preStopSeconds: 0 } }].flatMap(
      manifests,
    );
    const known = all.filter((m) => m.kind !== 'ServiceMonitor');
    assert.deepEqual(typeErrors(known), []);
    // this comparison does find faults
    const wrong = structuredClone(find(all, 'Deployment'));
    wrong.spec.template.spec.containers[0].livenessProb = {};
    wrong.spec.replicas = '2';
    assert.equal(typeErrors([wrong]).length, 2);
  });

  chartIt('refuses values that would not work, and says which', () => {
    const refused: [object, RegExp][] = [
      [{ replicaCount: 0 }, /replicaCount/],
      [{ replicas: 2 }, /replicas is not allowed/],
      [{ settings: { listen_port: 5432 } }, /settings/],
      [{ settings: { shutdown_timeout: 5 } }, /settings/],
      // the kubelet asks without TLS
      [{ settings: { metrics_tls_cert_file: '/tmp/tls.crt' } }, /settings/],
      [{ settings: { pool_mode: 'session\nuser = root' } }, /settings.pool_mode/],
      [{ settings: { query_timeout: 1.5 } }, /settings.query_timeout/],
      [{ databases: { app: 'host=db password=secret' } }, /databases.app/],
      [{ databases: { 'a\n[users]\nb': 'host=db' } }, /databases/],
      [{ databases: { '*': null } }, /databases/],
      [{ databases: { a$b: 'host=db' } }, /databases/],
      [{ users: { a$b: 'pool_mode=session' } }, /users/],
      [{ auth: { users: { app: 'x"\n"eve" "y' } } }, /auth.users.app/],
      [{ auth: { type: 'hba' } }, /auth/],
      [{ auth: { type: 'peer' } }, /auth.type/],
      // the process would not start
      [{ auth: { type: 'cert' } }, /tls.existingSecret/],
      [{ auth: { type: 'cert' }, tls: { existingSecret: 'certificate' } }, /tls.sslmode/],
      [{ auth: { type: 'ldap' } }, /auth_ldap_options is required/],
      [{ auth: { type: 'any' }, databases: { app: 'host=db auth_user=app' } }, /databases.app/],
      // the labels by which Services and the Deployment find the pods, and the annotation that replaces them
      [{ podLabels: { 'app.kubernetes.io/name': 'other' } }, /podLabels/],
      [{ podAnnotations: { 'checksum/config': 'x' } }, /podAnnotations/],
      [{ metrics: { serviceMonitor: { labels: { 'helm.sh/chart': 'x' } } } }, /serviceMonitor.labels/],
      [{ tls: { sslmode: 'yes' } }, /tls.sslmode/],
      [{ drain: { timeout: 0 } }, /drain.timeout/],
      [{ service: { port: 70000 } }, /service.port/],
      [{ image: { repository: '' } }, /image.repository/],
      [{ metrics: { serviceMonitor: { interval: '30' } } }, /interval/],
    ];
    for (const [values, text] of refused) {
      const { status, stderr } = render(values);
      assert.equal(status, 1, `accepted: ${JSON.stringify(values)}`);
      assert.match(stderr, text);
    }
  });
});

/** What is wrong with the manifests, by the types of kubernetes-types: unknown, missing and wrong fields. */
function typeErrors(all: Manifest[]): string[] {
  const lines = all.map((manifest, at) => {
    const api = API[manifest.kind] ?? assert.fail(manifest.kind);
    return `import type { ${manifest.kind} as T${at} } from 'kubernetes-types/${api}';
      export const manifest${at}: T${at} = ${JSON.stringify(manifest)};`;
  });
  const name = join(PROJECT_DIR, 'manifests.ts');
  const options: ts.CompilerOptions = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    types: [],
    lib: ['lib.es5.d.ts'],
  };
  const host = ts.createCompilerHost(options);
  const { readFile, getSourceFile, fileExists } = host;
  host.fileExists = (path) => path === name || fileExists(path);
  host.readFile = (path) => (path === name ? lines.join('\n') : readFile(path));
  host.getSourceFile = (path, ...rest) =>
    path === name ? ts.createSourceFile(path, lines.join('\n'), rest[0]) : getSourceFile(path, ...rest);
  const program = ts.createProgram([name], options, host);
  return ts.getPreEmitDiagnostics(program).map((d) => ts.flattenDiagnosticMessageText(d.messageText, '\n'));
}
