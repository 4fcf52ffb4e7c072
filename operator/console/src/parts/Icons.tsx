import type { ReactNode } from 'react';

function icon(paths: ReactNode) {
  return function Icon() {
    return (
      <svg
        width="17"
        height="17"
        viewBox="0 0 24 24"
        fill="none"
        stroke="currentColor"
        strokeWidth="2"
        strokeLinecap="round"
        strokeLinejoin="round"
        aria-hidden="true"
      >
        {paths}
      </svg>
    );
  };
}

export const Flask = icon(<path d="M3 18c4 0 4-12 8-12s4 9 10 9M3 21h18" />);
export const Plus = icon(<path d="M12 5v14M5 12h14" />);
export const Rack = icon(<path d="M4 4h16v6H4zM4 14h16v6H4zM8 7h.01M8 17h.01" />);
export const Chat = icon(<path d="M4 5h16v11H9l-5 4z" />);
export const Sun = icon(<path d="M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5" />);
export const Moon = icon(<path d="M20 14.5A8 8 0 0 1 9.5 4 8 8 0 1 0 20 14.5z" />);
