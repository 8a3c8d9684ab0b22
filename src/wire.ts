/*
 * Assigns every upcall: the only module that knows both the calling and the called layer.
 */

import { adminAnswerWaiting, adminHandleCancel, adminHandleClient, adminPostLogin, adminPreLogin } from './admin/admin';
import { logPrefix } from './core/base/log';
import { tagHostAddrDirty } from './core/link/dirty';
import { logSocketFields, logSocketPrefix } from './core/net/addr';
import { upcalls } from './core/pool/upcalls';
import { metricsSetup } from './core/report/metrics';
import { handleSignal } from './signals';
import {
  abortHandover,
  handleHandoverCommand,
  handoverTurnEnd,
  reloadAfterHandover,
  shutdownForHandover,
} from './takeover/give';
import { takeoverLoggedIn } from './takeover/take';

/** Called once, before any event is handled. */
export function wireUpcalls(): void {
  logPrefix.fn = logSocketPrefix;
  logPrefix.fields = logSocketFields;

  upcalls.admin.preLogin = adminPreLogin;
  upcalls.admin.postLogin = adminPostLogin;
  upcalls.admin.handleClient = adminHandleClient;
  upcalls.admin.handleCancel = adminHandleCancel;
  upcalls.admin.answerWaiting = adminAnswerWaiting;

  upcalls.handover.command = handleHandoverCommand;
  upcalls.handover.turnEnd = handoverTurnEnd;
  upcalls.handover.shutdown = shutdownForHandover;
  upcalls.handover.abort = abortHandover;
  upcalls.handover.laterReload = reloadAfterHandover;

  upcalls.takeoverLoggedIn = takeoverLoggedIn;
  upcalls.addressGone = (name, addr) => tagHostAddrDirty(name, addr.host);
  upcalls.signal = handleSignal;
  upcalls.reloaded = metricsSetup;
}
