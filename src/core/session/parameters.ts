// Parameters that a logged-in server reports.

import { slogDebug, wantDebug } from '../base/log';
import { arena } from '../base/native';
import { disconnectServer } from '../link/objects';
import { noteRole, roleChanged } from '../link/target-session';
import { type ServerSocket, SocketState } from '../pool/bouncer';
import { isAlwaysTracked, varBit } from '../pool/varcache';
import { PktReader } from '../wire/reader';

/** Handles a ParameterStatus, body in arena[off, end). @returns false if the server was disconnected */
export function loadParameter(server: ServerSocket, off: number, end: number): boolean {
  const reader = new PktReader(arena, off, end);
  const name = reader.str();
  const value = reader.str();
  if (name === null || value === null) {
    disconnectServer(server, true, 'broken ParameterStatus packet');
    return false;
  }
  if (wantDebug()) slogDebug(server, `S: param: ${name} = ${value}`);
  if (noteRole(server, name, value)) roleChanged(server);
  const client = server.link;
  const tracked = server.vars.report(name, value, client !== null && !server.settingVars);
  if (tracked && server.leftovers !== null && !server.settingVars) server.leftovers.reports++;
  // auth_query runs before its client has logged in, with the variables of the server
  if (client === null || client.state === SocketState.CL_LOGIN) return true;
  // what RESET reports is the server's default, not the client's value
  if (!server.settingVars || isAlwaysTracked(name)) {
    if (wantDebug()) slogDebug(client, `setting client var: ${name}='${value}'`);
    client.vars.set(name, value);
    if (!server.settingVars) server.changedVars |= varBit(name);
  }
  return true;
}
