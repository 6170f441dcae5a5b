"""One adapter per engine server. Engines are stock servers: started, watched, never rewritten."""
