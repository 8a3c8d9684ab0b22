// A setting of the form `name` or `name:port`.

const HOST_PORT = /^([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?)(?::([0-9]{1,5}))?$/;

/** @returns port: null = none given. The whole is null if the text has another form */
export function splitHostPort(text: string): { host: string; port: number | null } | null {
  const match = HOST_PORT.exec(text);
  if (match === null) return null;
  const port = match[2] === undefined ? null : Number(match[2]);
  return port !== null && (port < 1 || port > 65535) ? null : { host: match[1] as string, port };
}
