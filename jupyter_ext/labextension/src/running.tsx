import * as React from 'react';

/** A parked kernel in the Running panel, with a button to wake it. */
export function parkedLabel(name: string, wake: string, onWake: () => void): React.ReactNode {
  return (
    <>
      <span>{name}</span>
      <button
        className="jp-Torpor-link"
        onClick={event => {
          event.stopPropagation(); // the label opens the notebook
          onWake();
        }}
      >
        {wake}
      </button>
    </>
  );
}
