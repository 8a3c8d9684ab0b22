/*
 * The answers to scrapes. A text of thousands of pools has tens of megabytes, so slow clients must not have many of them
 * kept. Requests share the text of a report, few texts are kept, and each client gets its text in pieces. Called by
 * metrics.ts.
 */

import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { MetricsReport } from '../core/base/worker-messages';
import type { MetricsState } from './metrics-state';
import { metricsText } from './metrics-text';

/** Texts that are kept at a time. A client that is still reading the oldest one when another is needed is disconnected. */
const TEXTS_MAX = 4;
/** Bytes of a piece: a connection holds only the pieces that it has not sent yet, encrypted or not. */
const PIECE = 64 * 1024;

interface Text {
  readonly report: MetricsReport;
  readonly open: boolean;
  readonly bytes: Buffer;
  readonly readers: Set<Socket>;
}

/** Sends the bytes as fast as the client reads them. */
function sendPieces(response: ServerResponse, bytes: Buffer): void {
  let at = 0;
  const more = () => {
    while (at < bytes.length) {
      const piece = bytes.subarray(at, at + PIECE);
      at += piece.length;
      if (!response.write(piece)) {
        response.once('drain', more);
        return;
      }
    }
    response.end();
  };
  more();
}

export class Scrapes {
  /** the oldest first */
  private texts: Text[] = [];

  constructor(private readonly state: MetricsState) {}

  /** There is a new report: drops the texts of earlier reports, unless a client is reading them. */
  forget(): void {
    this.texts = this.texts.filter(({ report, readers }) => readers.size > 0 || report === this.state.report);
  }

  /** Answers a request, whose headers are set. @param open OpenMetrics instead of Prometheus's older format */
  answer(response: ServerResponse, report: MetricsReport, open: boolean): void {
    const text = this.textOf(report, open);
    response.writeHead(200, { 'Content-Length': text.bytes.length });
    const { socket } = response;
    if (response.req.method === 'HEAD' || socket === null) {
      response.end();
      return;
    }
    text.readers.add(socket);
    response.once('close', () => {
      text.readers.delete(socket);
      this.forget();
    });
    sendPieces(response, text.bytes);
  }

  private textOf(report: MetricsReport, open: boolean): Text {
    const known = this.texts.find((text) => text.report === report && text.open === open);
    if (known !== undefined) return known;
    this.forget();
    const made = {
      report,
      open,
      bytes: Buffer.from(metricsText(this.state, report, open)),
      readers: new Set<Socket>(),
    };
    this.texts.push(made);
    while (this.texts.length > TEXTS_MAX) for (const socket of this.texts.shift()?.readers ?? []) socket.destroy();
    return made;
  }
}
