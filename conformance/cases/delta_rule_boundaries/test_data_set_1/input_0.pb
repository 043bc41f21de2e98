BqueryJBp¬>Hq¿‚a
¿4`W¿